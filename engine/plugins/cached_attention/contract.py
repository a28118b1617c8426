"""Contract of `sgl::cached_attention` and its reference in NumPy."""

import numpy as np

INPUTS = ("query", "key", "value", "past_key", "past_value", "past_length", "kv_length")
OUTPUTS = ("output", "present_key", "present_value")


def reference(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    past_key: np.ndarray,
    past_value: np.ndarray,
    past_length: np.ndarray,
    kv_length: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[B,S,H*D], [B,S,Hkv*D] x2, [B,Hkv,T,D] x2, int32 [B] x2 -> [B,S,H*D], [B,Hkv,T,D] x2.

    past_length, kv_length: tokens in each request's cache before and after this call. Their difference, 0 to S, is how
    many rows of the request are valid; the rest is padding at the end. Output rows of padding are zero here; they, and
    what lies in the cache behind a request's end, are unspecified in lowerings.
    """
    batch, sequence, width = query.shape
    head_dim = width // num_heads
    present_key, present_value = past_key.copy(), past_value.copy()
    for b, (start, stop) in enumerate(zip(past_length, kv_length, strict=True)):
        for cache, new in ((present_key, key), (present_value, value)):
            rows = new[b, : stop - start].reshape(-1, num_kv_heads, head_dim)
            cache[b, :, start:stop] = rows.transpose(1, 0, 2)
    query_heads = query.astype(np.float64).reshape(batch, sequence, num_heads, head_dim).transpose(0, 2, 1, 3)
    keys, values = (
        np.repeat(cache.astype(np.float64), num_heads // num_kv_heads, axis=1) for cache in (present_key, present_value)
    )
    position = past_length[:, None] + np.arange(sequence)
    visible = np.arange(keys.shape[2]) <= position[:, None, :, None]
    logits = np.where(visible, query_heads @ keys.transpose(0, 1, 3, 2) / np.sqrt(head_dim), -np.inf)
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    output = (exponent / exponent.sum(axis=-1, keepdims=True)) @ values
    output = np.where((position < kv_length[:, None])[:, None, :, None], output, 0.0)
    return output.transpose(0, 2, 1, 3).reshape(query.shape).astype(query.dtype), present_key, present_value
