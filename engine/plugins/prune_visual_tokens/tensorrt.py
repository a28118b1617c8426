"""Lowering of `sgl::prune_visual_tokens` for both TensorRT targets: row gathers."""

import onnx_ir as ir

from engine.plugins.function import TENSORRT_OPSET, sgl_function
from engine.plugins.prune_visual_tokens.contract import INPUTS
from engine.plugins.prune_visual_tokens.gather import gather_rows


def prune_visual_tokens() -> ir.Function:
    """The op."""
    return sgl_function("prune_visual_tokens", gather_rows, INPUTS, TENSORRT_OPSET)
