"""Lowering of `sgl::full_attention` for both TensorRT targets: the standard `Attention`, one kernel of theirs."""

from typing import Any

import onnx_ir as ir

from engine.plugins.full_attention.contract import INPUTS
from engine.plugins.function import TENSORRT_OPSET, sgl_function


def full_attention(num_heads: int) -> ir.Function:
    """The op with this head count."""

    def body(op: Any, *inputs: ir.Value) -> ir.Value:
        return op.Attention(*inputs, q_num_heads=num_heads, kv_num_heads=num_heads)

    return sgl_function("full_attention", body, INPUTS, TENSORRT_OPSET)
