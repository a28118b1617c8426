"""`causal_score_mask` of the contract as nodes of a graph."""

from typing import Any

import onnx_ir as ir

from engine.plugins.received_attention.contract import MASKED


def causal_score_mask(op: Any, position: ir.Value, key_cache: ir.Value) -> ir.Value:
    """int32 [B,R], [B,Hkv,T,D] -> [B,R,T]"""
    assert position.shape is not None and key_cache.shape is not None, "both are declared with their shapes"
    cache = op.Squeeze(op.Cast(op.Shape(key_cache, start=2, end=3), to=ir.DataType.INT32))
    visible = op.LessOrEqual(op.Range(0, cache, 1), op.Unsqueeze(position, [2]))
    mask = op.Where(visible, 0.0, MASKED)
    mask.shape = ir.Shape([*position.shape, key_cache.shape[2]])
    return mask
