"""Lowering of `sgl::received_attention` for ONNX Runtime. A full attention matrix is never made."""

import math
from typing import Any

import onnx_ir as ir

from engine.plugins.function import CONTRIB, sgl_function
from engine.plugins.received_attention.contract import INPUTS


def received_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""
    group = num_heads // num_kv_heads

    def body(op: Any, *inputs: ir.Value) -> ir.Value:
        query, key_cache, score_mask, score_weight, visual_column = inputs
        # The heads of a group share their keys: [B,Hkv,G*R,D] x [B,Hkv,T,D] reads each key once.
        rows = op.Transpose(op.Reshape(query, [0, 0, num_kv_heads, group, head_dim]), perm=[0, 2, 3, 1, 4])
        rows = op.Reshape(rows, [0, num_kv_heads, -1, head_dim])
        logits = op.FusedMatMul(rows, key_cache, transB=1, alpha=1 / math.sqrt(head_dim), _domain=CONTRIB)
        logits = op.Cast(logits, to=ir.DataType.FLOAT)
        # A head's rows lie together, so mask and weight repeat for each head of the group.
        mask = op.Tile(op.Unsqueeze(score_mask, [1]), [1, 1, group, 1])
        weight = op.Tile(op.Unsqueeze(score_weight, [1, 2]), [1, 1, 1, group])
        probabilities = op.Softmax(op.Add(logits, mask), axis=-1)
        per_key = op.ReduceSum(op.MatMul(weight, probabilities), [1, 2], keepdims=0)
        return op.GatherElements(per_key, visual_column, axis=1)

    return sgl_function("received_attention", body, INPUTS)
