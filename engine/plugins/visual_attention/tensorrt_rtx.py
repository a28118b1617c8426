"""Lowering of `sgl::visual_attention` for TensorRT: the fused attention, and beside it a path that recomputes the
scored rows from the cached keys. A full attention matrix is never made.
"""

import math
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.tensorrt_rtx import fused_attention, split_heads
from engine.plugins.function import TENSORRT_OPSET, sgl_function
from engine.plugins.visual_attention.contract import INPUTS


def visual_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""
    group = num_heads // num_kv_heads

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        *attention_inputs, score_row, score_weight, score_mask, visual_column = inputs
        output, present_key, present_value = fused_attention(op, attention_inputs, num_heads, num_kv_heads, head_dim)
        # The unscaled queries: the compiler fails when both paths share the scaled ones.
        rows = op.GatherND(attention_inputs[0], op.Unsqueeze(score_row, [-1]), batch_dims=1)
        # The heads of a group share their keys: [B,Hkv,T,D] x [B,Hkv,D,G*R] reads each key once and as it lies.
        rows = op.Reshape(split_heads(op, rows, num_heads, head_dim), [0, num_kv_heads, -1, head_dim])
        logits = op.MatMul(present_key, op.Transpose(rows, perm=[0, 1, 3, 2]))
        # [B,Hkv,T,G,R]: mask and weight are the same for every head, and are not repeated in memory.
        logits = op.Cast(op.Reshape(logits, [0, 0, 0, group, -1]), to=ir.DataType.FLOAT)
        logits = op.Add(
            op.Mul(logits, 1 / math.sqrt(head_dim)), op.Unsqueeze(op.Transpose(score_mask, perm=[0, 2, 1]), [1, 3])
        )
        counted = op.Mul(op.Softmax(logits, axis=2), op.Unsqueeze(score_weight, [1, 2, 3]))
        per_key = op.ReduceSum(counted, [1, 3, 4], keepdims=0)
        received = op.GatherElements(op.Unsqueeze(per_key, [1]), op.Unsqueeze(visual_column, [1]), axis=2)
        return after(op, per_key, output), present_key, present_value, received

    return sgl_function("visual_attention", body, INPUTS, TENSORRT_OPSET)


def after(op: Any, per_key: ir.Value, output: ir.Value) -> ir.Value:
    """[B,T], [B,S,H*D] -> [B,S,H*D]: `output`, which now depends on what the keys of this layer received.

    So that is done before the next layer starts. Otherwise the compiler runs the score paths of all layers side by
    side, and scratch memory grows with depth. One number of each request will do: they come from one kernel.
    """
    first = op.Unsqueeze(op.Slice(per_key, [0], [1], [1]), [2])
    negative = op.Less(first, 0.0)  # never; nor is NaN, which is passed on
    return op.Where(negative, op.CastLike(op.Constant(value_float=0.0), output), output)
