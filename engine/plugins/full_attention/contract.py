"""Contract of `sgl::full_attention` and its reference in NumPy."""

import numpy as np

INPUTS = ("query", "key", "value")
OUTPUTS = ("output",)


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, num_heads: int) -> np.ndarray:
    """[N,S,H*D] x3 -> [N,S,H*D]: softmax(q k^T / sqrt(D)) v in each head, computed in float64."""
    q, k, v = (
        x.astype(np.float64).reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3) for x in (query, key, value)
    )
    logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    output = exponent / exponent.sum(axis=-1, keepdims=True) @ v
    return output.transpose(0, 2, 1, 3).reshape(query.shape).astype(query.dtype)
