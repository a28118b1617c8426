"""Lowering of `sgl::full_attention` for ONNX Runtime: its MultiHeadAttention, which makes no [S,S] matrix.

The standard `Attention` makes one for each head of each tile: 67 MB a tile at 1025 tokens and 16 heads.
"""

from typing import Any

import onnx_ir as ir

from engine.plugins.full_attention.contract import INPUTS
from engine.plugins.function import CONTRIB, sgl_function


def full_attention(num_heads: int) -> ir.Function:
    """The op with this head count."""

    def body(op: Any, *inputs: ir.Value) -> ir.Value:
        return op.MultiHeadAttention(*inputs, num_heads=num_heads, _domain=CONTRIB)

    return sgl_function("full_attention", body, INPUTS)
