"""Lowering of `sgl::cached_attention` for ONNX Runtime: its GroupQueryAttention, past and present in one buffer."""

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.contract import INPUTS
from engine.plugins.function import CONTRIB, constant, sgl_function


def group_query_attention(
    op: Any, inputs: Sequence[ir.Value], num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The contract's inputs -> its outputs, as nodes. One request only when rows are appended to a non-empty cache."""
    *tensors, kv_length = inputs
    return op.GroupQueryAttention(
        *tensors,
        op.Sub(kv_length, constant(op, [1], ir.DataType.INT32)),
        op.ReduceMax(kv_length, keepdims=0),
        num_heads=num_heads,
        kv_num_heads=num_kv_heads,
        scale=1 / math.sqrt(head_dim),
        _domain=CONTRIB,
        _outputs=3,
    )


def cached_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        return group_query_attention(op, inputs, num_heads, num_kv_heads, head_dim)

    return sgl_function("cached_attention", body, INPUTS)
