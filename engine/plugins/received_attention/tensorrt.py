"""Lowering of `sgl::received_attention` for both TensorRT targets. A full attention matrix is never made."""

import math
from typing import Any

import onnx_ir as ir

from engine.plugins.function import TENSORRT_OPSET, sgl_function
from engine.plugins.received_attention.contract import INPUTS
from engine.plugins.tensorrt_caches import split_heads


def received_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""
    group = num_heads // num_kv_heads

    def body(op: Any, *inputs: ir.Value) -> ir.Value:
        query, key_cache, score_mask, score_weight, visual_column = inputs
        # The heads of a group share their keys: [B,Hkv,T,D] x [B,Hkv,D,G*R] reads each key once and as it lies.
        rows = op.Reshape(split_heads(op, query, num_heads, head_dim), [0, num_kv_heads, -1, head_dim])
        logits = op.MatMul(key_cache, op.Transpose(rows, perm=[0, 1, 3, 2]))
        # [B,Hkv,T,G,R]: mask and weight are the same for every head, and are not repeated in memory.
        logits = op.Cast(op.Reshape(logits, [0, 0, 0, group, -1]), to=ir.DataType.FLOAT)
        logits = op.Add(
            op.Mul(logits, 1 / math.sqrt(head_dim)), op.Unsqueeze(op.Transpose(score_mask, perm=[0, 2, 1]), [1, 3])
        )
        counted = op.Mul(op.Softmax(logits, axis=2), op.Unsqueeze(score_weight, [1, 2, 3]))
        return op.GatherElements(op.ReduceSum(counted, [1, 3, 4], keepdims=0), visual_column, axis=1)

    return sgl_function("received_attention", body, INPUTS, TENSORRT_OPSET)
