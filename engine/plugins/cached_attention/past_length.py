"""`past_length` of the contract as nodes of a graph."""

from typing import Any

import onnx_ir as ir

INT32 = ir.DataType.INT32


def past_length(op: Any, rows: ir.Value, kv_length: ir.Value) -> ir.Value:
    """[B,S,...], int32 [B] -> int32 [B]: tokens in the cache before this call of S rows."""
    sequence = op.Cast(op.Shape(rows, start=1, end=2), to=INT32)
    starts_empty = op.Equal(sequence, op.ReduceMax(kv_length, keepdims=1))
    return op.Where(starts_empty, op.Sub(kv_length, kv_length), op.Sub(kv_length, sequence))
