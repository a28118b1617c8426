"""Heads and KV caches as TensorRT wants them: nodes that lowerings of several ops share.

The caches are as long as they may become. TensorRT wants them as inputs of the network and, updated, as its outputs.
"""

from typing import Any

import onnx_ir as ir


def split_heads(op: Any, x: ir.Value, num_heads: int, head_dim: int) -> ir.Value:
    """[B,S,H*D] -> [B,H,S,D]"""
    return op.Transpose(op.Reshape(x, [0, 0, num_heads, head_dim]), perm=[0, 2, 1, 3])


def append(op: Any, cache: ir.Value, new: ir.Value, past: ir.Value, num_kv_heads: int, head_dim: int) -> ir.Value:
    """[B,Hkv,T,D], [B,S,Hkv*D], int32 [B] -> [B,Hkv,T,D]: the cache with this call's keys or values in it.

    Padding is written, too, behind a request's end: the cache has room for past + S.
    """
    write_index = op.Cast(past, to=ir.DataType.INT64)
    return op.TensorScatter(cache, split_heads(op, new, num_kv_heads, head_dim), write_index, axis=2)
