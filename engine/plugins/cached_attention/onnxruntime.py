"""Lowering of `sgl::cached_attention` for ONNX Runtime, past and present in one buffer.

GroupQueryAttention can append many rows to one request, all of them valid unless it was empty; rows of other numbers to
requests that were all empty; and one valid row to each of many. It refuses, or computes something else for, what the
contract allows beyond that. Neither the length of the buffer nor the other requests change a bit of a request's output.
"""

import math
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.contract import INPUTS
from engine.plugins.function import CONTRIB, constant, sgl_function

SHARED = ("total_length",)
"""Input beside the contract's: int32 [1], tokens of the longest request after this call, were all of its S rows valid.
If that is S, all requests were empty: GroupQueryAttention takes them for prompts."""


def shared_inputs(op: Any, rows: ir.Value, past_length: ir.Value) -> tuple[ir.Value, ...]:
    """[B,S,C], int32 [B] -> SHARED"""
    sequence = op.Cast(op.Shape(rows, start=1, end=2), to=ir.DataType.INT32)
    total_length = op.Add(op.ReduceMax(past_length, keepdims=1), sequence)
    total_length.shape = ir.Shape([1])
    return (total_length,)


def cached_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts; it takes SHARED, too."""

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        *tensors, _, kv_length, total_length = inputs
        return op.GroupQueryAttention(
            *tensors,
            op.Sub(kv_length, constant(op, [1], ir.DataType.INT32)),
            total_length,
            num_heads=num_heads,
            kv_num_heads=num_kv_heads,
            scale=1 / math.sqrt(head_dim),
            _domain=CONTRIB,
            _outputs=3,
        )

    return sgl_function("cached_attention", body, (*INPUTS, *SHARED))
