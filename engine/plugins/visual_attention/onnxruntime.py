"""Lowering of `sgl::visual_attention` for ONNX Runtime: the fused attention, and beside it a path that recomputes the
scored rows from the cached keys. A full attention matrix is never made.
"""

import math
from typing import Any

import onnx_ir as ir

from engine.plugins.cached_attention.onnxruntime import group_query_attention
from engine.plugins.function import CONTRIB, sgl_function
from engine.plugins.visual_attention.contract import INPUTS


def visual_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""
    group = num_heads // num_kv_heads

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        *attention_inputs, score_row, score_weight, score_mask, visual_column = inputs
        output, present_key, present_value = group_query_attention(
            op, attention_inputs, num_heads, num_kv_heads, head_dim
        )
        # The heads of a group share their keys: [B,Hkv,G*R,D] x [B,Hkv,T,D] reads each key once.
        rows = op.GatherND(attention_inputs[0], op.Unsqueeze(score_row, [-1]), batch_dims=1)
        rows = op.Transpose(op.Reshape(rows, [0, 0, num_kv_heads, group, head_dim]), perm=[0, 2, 3, 1, 4])
        rows = op.Reshape(rows, [0, num_kv_heads, -1, head_dim])
        logits = op.FusedMatMul(rows, present_key, transB=1, alpha=1 / math.sqrt(head_dim), _domain=CONTRIB)
        logits = op.Cast(logits, to=ir.DataType.FLOAT)
        # A head's rows lie together, so mask and weight repeat for each head of the group.
        mask = op.Tile(op.Unsqueeze(score_mask, [1]), [1, 1, group, 1])
        weight = op.Tile(op.Unsqueeze(score_weight, [1, 2]), [1, 1, 1, group])
        probabilities = op.Softmax(op.Add(logits, mask), axis=-1)
        per_key = op.ReduceSum(op.MatMul(weight, probabilities), [1], keepdims=0)
        received = op.GatherElements(per_key, op.Unsqueeze(visual_column, [1]), axis=2)
        return output, present_key, present_value, received

    return sgl_function("visual_attention", body, INPUTS)
