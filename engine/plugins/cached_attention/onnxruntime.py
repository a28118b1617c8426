"""Lowerings of `sgl::cached_attention` for ONNX Runtime, past and present in one buffer.

Both are GroupQueryAttention, which can append many rows to one request, all of them valid unless it was empty; rows of
different numbers to requests that were all empty; and one valid row to each of many. It refuses, or computes something
else for, what the contract allows beyond that.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.contract import INPUTS, OUTPUTS
from engine.plugins.function import CONTRIB, constant, sgl_function
from engine.plugins.received_attention.score_mask import causal_score_mask

SHARED_GPU = ("total_length",)
"""Input of a GPU's beside the contract's: int32 [1], tokens of the longest request after this call, were all of its S
rows valid. If that is S, all requests were empty: GroupQueryAttention takes them for prompts."""
SHARED = (*SHARED_GPU, "is_one_row", "key_stop", "row_mask", "row_place")
"""And of a CPU's: bool [1], whether S is 1; int64 [1], T', the first of the T keys, with those of all requests among
them; float32 [B,1,T], `causal_score_mask` of each request's new row; int64 [B,Hkv,1,D], its place in the cache for
every number of its keys."""
SUMMED_KEYS = 256
"""T' is a multiple of it, or T. A sum over keys takes several at once, and what is left at its end in another order:
with nothing left, masked keys behind a request's end change no bit of its sums."""
MIN_GROUP = 5
"""Query heads that share keys, from which on they are grouped: 6 and 7 gain, 2 and 4 take as long or longer."""

Outputs = tuple[ir.Value, ir.Value, ir.Value]


def group_query_attention(
    op: Any, inputs: Sequence[ir.Value], num_heads: int, num_kv_heads: int, head_dim: int
) -> Outputs:
    """The contract's inputs and SHARED_GPU -> its outputs, as nodes."""
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


def one_row(op: Any, inputs: Sequence[ir.Value], num_heads: int, num_kv_heads: int, head_dim: int) -> Outputs:
    """The contract's inputs and SHARED -> its outputs for one new row of each request, as nodes.

    The queries that share keys meet them in one product. The length of the buffer and the other requests change no bit
    of a request's output: see SUMMED_KEYS and `weighted_sum`.
    """
    query, key, value, past_key, past_value, *_, key_stop, row_mask, row_place = inputs
    # Of one row, [B,1,H*D] and [B,H,1,D] are the same numbers in the same order.
    row = constant(op, [0, num_kv_heads, 1, head_dim])
    present_key = op.ScatterElements(past_key, row_place, op.Reshape(key, row), axis=2)
    present_value = op.ScatterElements(past_value, row_place, op.Reshape(value, row), axis=2)
    queries = op.Reshape(query, constant(op, [0, num_kv_heads, num_heads // num_kv_heads, head_dim]))
    mask = op.Unsqueeze(row_mask, constant(op, [1]))
    keys, values, mask = (
        op.Slice(x, constant(op, [0]), key_stop, constant(op, [axis]))
        for x, axis in ((present_key, 2), (present_value, 2), (mask, 3))
    )
    logits = op.FusedMatMul(queries, keys, transB=1, alpha=1 / math.sqrt(head_dim), _domain=CONTRIB)
    output = weighted_sum(op, op.Softmax(op.Add(logits, mask), axis=-1), values)
    return op.Reshape(output, constant(op, [0, 1, num_heads * head_dim])), present_key, present_value


def weighted_sum(op: Any, weight: ir.Value, value: ir.Value) -> ir.Value:
    """[B,Hkv,G,T'], [B,Hkv,T',D] -> [B,Hkv,G,D]

    Each of its numbers is a sum over T', which a thread cuts into blocks by how many columns of the result it has. Of
    [G,D] that would depend on how many threads the work is worth, on T' and B; of [D,G] threads share the rows.
    """
    sums = op.FusedMatMul(value, weight, transA=1, transB=1, _domain=CONTRIB)
    return op.Transpose(sums, perm=[0, 1, 3, 2])


def shared_inputs_gpu(op: Any, rows: ir.Value, past_key: ir.Value, past_length: ir.Value) -> tuple[ir.Value, ...]:
    """[B,S,C], [B,Hkv,T,D], int32 [B] -> SHARED_GPU"""
    sequence = op.Cast(op.Shape(rows, start=1, end=2), to=ir.DataType.INT32)
    total_length = op.Add(op.ReduceMax(past_length, keepdims=1), sequence)
    total_length.shape = ir.Shape([1])
    return (total_length,)


def shared_inputs(op: Any, rows: ir.Value, past_key: ir.Value, past_length: ir.Value) -> tuple[ir.Value, ...]:
    """[B,S,C], [B,Hkv,T,D], int32 [B] -> SHARED"""
    is_one_row = op.Equal(op.Shape(rows, start=1, end=2), [1])
    is_one_row.shape = ir.Shape([1])
    assert past_length.shape is not None and past_key.shape is not None, "both are declared with their shapes"
    batch, heads, _, dim = past_key.shape
    position = op.Unsqueeze(past_length, [1])
    position.shape = ir.Shape([*past_length.shape, 1])
    place = op.Unsqueeze(op.Cast(position, to=ir.DataType.INT64), [2, 3])
    row_place = op.Expand(place, op.Concat(op.Shape(past_key, start=0, end=1), [heads, 1, dim], axis=0))
    row_place.shape = ir.Shape([batch, heads, 1, dim])
    (total_length,) = shared_inputs_gpu(op, rows, past_key, past_length)
    blocks = op.Div(op.Add(op.Cast(total_length, to=ir.DataType.INT64), SUMMED_KEYS - 1), SUMMED_KEYS)
    key_stop = op.Min(op.Mul(blocks, SUMMED_KEYS), op.Shape(past_key, start=2, end=3))
    key_stop.shape = ir.Shape([1])
    return total_length, is_one_row, key_stop, causal_score_mask(op, position, past_key), row_place


def cached_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts, on a CPU; it takes SHARED, too.

    There GroupQueryAttention reads keys and values once for each of the query heads that share them: with many tokens
    in the cache, most of what attention costs. So one row of each request goes another way. Which way must not depend
    on the length of the buffer: that depends on which other questions run, and a question's answer is the same bits
    alone and together.
    """
    sizes = num_heads, num_kv_heads, head_dim

    def body(op: Any, *inputs: ir.Value) -> Outputs:
        tensors, is_one_row = inputs[: len(INPUTS) + len(SHARED_GPU)], inputs[len(INPUTS) + len(SHARED_GPU)]
        if num_heads < MIN_GROUP * num_kv_heads:
            return group_query_attention(op, tensors, *sizes)

        def branch(name: str, trace: Callable[[Any], Outputs]) -> ir.Graph:
            graph = op.builder.subgraph(trace, [], [ir.Value() for _ in OUTPUTS], name=name)
            # A branch may not give a name that the function around it gives, too.
            for value in (output for node in graph for output in node.outputs):
                value.name = f"{name}_{value.name}"
            return graph

        return op.If(
            is_one_row,
            then_branch=branch("one_row", lambda op: one_row(op, inputs, *sizes)),
            else_branch=branch("rows", lambda op: group_query_attention(op, tensors, *sizes)),
            _outputs=len(OUTPUTS),
        )

    return sgl_function("cached_attention", body, (*INPUTS, *SHARED))


def cached_attention_gpu(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts, on a GPU, whose GroupQueryAttention is one kernel; it takes SHARED_GPU, too."""

    def body(op: Any, *inputs: ir.Value) -> Outputs:
        return group_query_attention(op, inputs, num_heads, num_kv_heads, head_dim)

    return sgl_function("cached_attention", body, (*INPUTS, *SHARED_GPU))
