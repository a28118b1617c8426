"""Contract of `sgl::visual_attention` and its reference in NumPy (paper, eqs. 3-5, one layer)."""

import numpy as np

from engine.plugins import cached_attention
from engine.plugins.cached_attention.contract import past_length

INPUTS = (*cached_attention.INPUTS, "score_row", "score_weight", "score_mask", "visual_column")
OUTPUTS = (*cached_attention.OUTPUTS, "received")


MASKED = -1e30
"""Mask value of a key that a row cannot see; finite, so that a row that sees nothing stays free of NaN."""


def reference(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    past_key: np.ndarray,
    past_value: np.ndarray,
    kv_length: np.ndarray,
    score_row: np.ndarray,
    score_weight: np.ndarray,
    score_mask: np.ndarray,
    visual_column: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The inputs of cached_attention, then [B,R], [B,R], [B,R,T], [B,V] -> its outputs, then received float32 [B,1,V].

    score_row: query rows that count, among the S of this call; score_weight: what each counts, 0 for padding;
    score_mask: 0 where the row sees the key, MASKED elsewhere (`causal_score_mask`); visual_column: places of the
    visual tokens in the cache, padded with any valid place.
    received[b,0,v] = sum over heads and rows of weight * post-softmax attention from the row to the column.
    """
    outputs = cached_attention.reference(query, key, value, past_key, past_value, kv_length, num_heads, num_kv_heads)
    batch, _, width = query.shape
    head_dim, rows = width // num_heads, score_row.shape[1]
    scored = np.take_along_axis(query, score_row[:, :, None], axis=1).astype(np.float64)
    keys = np.repeat(outputs[1].astype(np.float64), num_heads // num_kv_heads, axis=1)
    logits = scored.reshape(batch, rows, num_heads, head_dim).transpose(0, 2, 1, 3) @ keys.transpose(0, 1, 3, 2)
    logits = logits / np.sqrt(head_dim) + score_mask[:, None]
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponent / exponent.sum(axis=-1, keepdims=True)
    per_key = np.einsum("bhrt,br->bt", probabilities, score_weight.astype(np.float64))
    return *outputs, np.take_along_axis(per_key, visual_column, axis=1)[:, None].astype(np.float32)


def causal_score_mask(score_row: np.ndarray, kv_length: np.ndarray, sequence: int, cache: int) -> np.ndarray:
    """[B,R], [B], S, T -> float32 [B,R,T]: what `score_mask` must be for causal attention."""
    position = past_length(kv_length, sequence)[:, None] + score_row
    visible = np.arange(cache) <= position[:, :, None]
    return np.where(visible, 0.0, MASKED).astype(np.float32)
