"""Lowering of `sgl::prune_visual_tokens` for full TensorRT: our kernel as a plugin."""

from typing import Any

import onnx_ir as ir

from engine.plugins.function import DOMAIN, PLUGIN, PLUGIN_OPSET, sgl_function
from engine.plugins.prune_visual_tokens.contract import INPUTS


def prune_visual_tokens() -> ir.Function:
    """The op."""

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        return op.prune_rows(*inputs, **PLUGIN, _domain=DOMAIN, _outputs=3)

    return sgl_function("prune_visual_tokens", body, INPUTS, PLUGIN_OPSET)
