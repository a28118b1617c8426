"""Contract of `sgl::received_attention` and its reference in NumPy (paper, eqs. 3-5, one layer)."""

import numpy as np

INPUTS = ("query", "key_cache", "score_mask", "score_weight", "visual_column")
OUTPUTS = ("received",)


MASKED = -1e30
"""Mask value of a key that a row cannot see; finite, so that a row that sees nothing stays free of NaN."""


def reference(
    query: np.ndarray,
    key_cache: np.ndarray,
    score_mask: np.ndarray,
    score_weight: np.ndarray,
    visual_column: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
) -> np.ndarray:
    """[B,R,H*D], [B,Hkv,T,D], [B,R,T], [B,R], [B,V] -> float32 [B,V].

    query: of the scored rows, rotated; score_mask: 0 where a row sees the key, MASKED elsewhere (`causal_score_mask`);
    score_weight: what each row counts, 0 for padding; visual_column: places of the visual tokens in the cache, padded
    with any valid place.
    received[b,v] = sum over heads and rows of weight * softmax attention from the row to the column.
    """
    batch, rows, width = query.shape
    head_dim = width // num_heads
    keys = np.repeat(key_cache.astype(np.float64), num_heads // num_kv_heads, axis=1)
    heads = query.astype(np.float64).reshape(batch, rows, num_heads, head_dim).transpose(0, 2, 1, 3)
    logits = heads @ keys.transpose(0, 1, 3, 2) / np.sqrt(head_dim) + score_mask[:, None]
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponent / exponent.sum(axis=-1, keepdims=True)
    per_key = np.einsum("bhrt,br->bt", probabilities, score_weight.astype(np.float64))
    return np.take_along_axis(per_key, visual_column, axis=1).astype(np.float32)


def causal_score_mask(position: np.ndarray, cache: int) -> np.ndarray:
    """[B,R] places of the rows in the cache, T -> float32 [B,R,T]: what `score_mask` must be for causal attention."""
    return np.where(np.arange(cache) <= position[:, :, None], 0.0, MASKED).astype(np.float32)
