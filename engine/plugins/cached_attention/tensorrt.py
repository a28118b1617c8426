"""Lowering of `sgl::cached_attention` for both TensorRT targets: caches updated in place, and its fused attention.

Its attention knows no padding among the query rows: all S rows of each request are valid.
"""

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.contract import INPUTS
from engine.plugins.function import TENSORRT_DOMAIN, TENSORRT_OPSET, sgl_function
from engine.plugins.tensorrt_caches import append, split_heads


def fused_attention(
    op: Any, inputs: Sequence[ir.Value], num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The contract's inputs -> its outputs, as nodes."""
    query, key, value, past_key, past_value, past_length, kv_length = inputs
    present_key, present_value = (
        append(op, cache, new, past_length, num_kv_heads, head_dim)
        for cache, new in ((past_key, key), (past_value, value))
    )
    # TensorRT's attention does not scale.
    scale = op.CastLike(op.Constant(value_float=1 / math.sqrt(head_dim)), query)
    output = op.TRT_Attention(
        split_heads(op, op.Mul(query, scale), num_heads, head_dim),
        present_key,
        present_value,
        None,
        None,
        kv_length,
        # The last row of a request sees all of its tokens.
        causal_kind="lower_right",
        _domain=TENSORRT_DOMAIN,
    )
    output = op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), [0, 0, num_heads * head_dim])
    return output, present_key, present_value


def cached_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        return fused_attention(op, inputs, num_heads, num_kv_heads, head_dim)

    return sgl_function("cached_attention", body, INPUTS, TENSORRT_OPSET)
