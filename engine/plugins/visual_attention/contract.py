"""Contract of `sgl::visual_attention` and its reference in NumPy (paper, eqs. 3-5, one layer)."""

import numpy as np

from engine.plugins import cached_attention, received_attention

INPUTS = (*cached_attention.INPUTS, "score_row", "score_weight", "score_mask", "visual_column")
OUTPUTS = (*cached_attention.OUTPUTS, *received_attention.OUTPUTS)


def reference(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    past_key: np.ndarray,
    past_value: np.ndarray,
    past_length: np.ndarray,
    kv_length: np.ndarray,
    score_row: np.ndarray,
    score_weight: np.ndarray,
    score_mask: np.ndarray,
    visual_column: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The inputs of cached_attention, then [B,R], [B,R], [B,R,T], [B,V] -> its outputs, then received float32 [B,1,V].

    score_row: query rows that count, among the S of this call; the others are those of received_attention.
    """
    outputs = cached_attention.reference(
        query, key, value, past_key, past_value, past_length, kv_length, num_heads, num_kv_heads
    )
    scored = np.take_along_axis(query, score_row[:, :, None], axis=1)
    received = received_attention.reference(
        scored, outputs[1], score_mask, score_weight, visual_column, num_heads, num_kv_heads
    )
    return *outputs, received[:, None]


def causal_score_mask(score_row: np.ndarray, past_length: np.ndarray, cache: int) -> np.ndarray:
    """[B,R], [B], T -> float32 [B,R,T]: what `score_mask` must be for causal attention."""
    return received_attention.causal_score_mask(past_length[:, None] + score_row, cache)
