"""Lowerings of `sgl::cached_attention` for ONNX Runtime, past and present in one buffer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.contract import INPUTS, OUTPUTS
from engine.plugins.function import CONTRIB, constant, sgl_function
from engine.plugins.received_attention.score_mask import causal_score_mask

SHARED = ("is_grouped", "last_mask", "last_place")
"""Inputs beside the contract's: bool [1], whether queries that share keys meet them in one product, which only one new
row of each request may; float32 [B,1,T], `causal_score_mask` of each request's last token; int64 [B,Hkv,1,D], its place
in the cache for every number of its keys."""
MIN_GROUP = 5
"""Query heads that share keys, from which on they are grouped: 6 and 7 gain, 2 and 4 take as long or longer."""
MIN_CACHE = 512
"""Tokens that a cache has room for, from which on they are: below, more and smaller nodes cost what they save."""

Outputs = tuple[ir.Value, ir.Value, ir.Value]


def group_query_attention(
    op: Any, inputs: Sequence[ir.Value], num_heads: int, num_kv_heads: int, head_dim: int
) -> Outputs:
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


def one_row(op: Any, inputs: Sequence[ir.Value], num_heads: int, num_kv_heads: int, head_dim: int) -> Outputs:
    """The same and SHARED for one new row of each request: the queries that share keys meet them in one product."""
    query, key, value, past_key, past_value, _, _, last_mask, last_place = inputs
    # Of one row, [B,1,H*D] and [B,H,1,D] are the same numbers in the same order.
    row = constant(op, [0, num_kv_heads, 1, head_dim])
    present_key = op.ScatterElements(past_key, last_place, op.Reshape(key, row), axis=2)
    present_value = op.ScatterElements(past_value, last_place, op.Reshape(value, row), axis=2)
    queries = op.Reshape(query, constant(op, [0, num_kv_heads, num_heads // num_kv_heads, head_dim]))
    logits = op.FusedMatMul(queries, present_key, transB=1, alpha=1 / math.sqrt(head_dim), _domain=CONTRIB)
    masked = op.Add(logits, op.Unsqueeze(last_mask, constant(op, [1])))
    output = op.MatMul(op.Softmax(masked, axis=-1), present_value)
    return op.Reshape(output, constant(op, [0, 1, num_heads * head_dim])), present_key, present_value


def shared_inputs(op: Any, rows: ir.Value, past_key: ir.Value, kv_length: ir.Value) -> Outputs:
    """[B,S,C], [B,Hkv,T,D], int32 [B] -> SHARED"""
    is_one_row = op.Equal(op.Shape(rows, start=1, end=2), [1])
    is_grouped = op.And(is_one_row, op.GreaterOrEqual(op.Shape(past_key, start=2, end=3), [MIN_CACHE]))
    is_grouped.shape = ir.Shape([1])
    assert kv_length.shape is not None and past_key.shape is not None, "both are declared with their shapes"
    batch, heads, _, dim = past_key.shape
    position = op.Unsqueeze(op.Sub(kv_length, 1), [1])
    position.shape = ir.Shape([*kv_length.shape, 1])
    place = op.Unsqueeze(op.Cast(position, to=ir.DataType.INT64), [2, 3])
    last_place = op.Expand(place, op.Concat(op.Shape(past_key, start=0, end=1), [heads, 1, dim], axis=0))
    last_place.shape = ir.Shape([batch, heads, 1, dim])
    return is_grouped, causal_score_mask(op, position, past_key), last_place


def cached_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts, on a CPU; it takes SHARED, too.

    There GroupQueryAttention reads keys and values once for each of the query heads that share them: with many tokens
    in the cache, most of what attention costs.
    """
    sizes = num_heads, num_kv_heads, head_dim

    def body(op: Any, *inputs: ir.Value) -> Outputs:
        tensors, is_grouped = inputs[: len(INPUTS)], inputs[len(INPUTS)]
        if num_heads < MIN_GROUP * num_kv_heads:
            return group_query_attention(op, tensors, *sizes)

        def branch(name: str, trace: Callable[[Any], Outputs]) -> ir.Graph:
            graph = op.builder.subgraph(trace, [], [ir.Value() for _ in OUTPUTS], name=name)
            # A branch may not give a name that the function around it gives, too.
            for value in (output for node in graph for output in node.outputs):
                value.name = f"{name}_{value.name}"
            return graph

        return op.If(
            is_grouped,
            then_branch=branch("one_row", lambda op: one_row(op, inputs, *sizes)),
            else_branch=branch("rows", lambda op: group_query_attention(op, tensors, *sizes)),
            _outputs=len(OUTPUTS),
        )

    return sgl_function("cached_attention", body, (*INPUTS, *SHARED))


def cached_attention_gpu(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts, on a GPU, whose GroupQueryAttention is one kernel."""

    def body(op: Any, *inputs: ir.Value) -> Outputs:
        return group_query_attention(op, inputs, num_heads, num_kv_heads, head_dim)

    return sgl_function("cached_attention", body, INPUTS)
