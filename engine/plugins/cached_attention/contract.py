"""Contract of `sgl::cached_attention` and its reference in NumPy."""

import numpy as np

INPUTS = ("query", "key", "value", "past_key", "past_value", "kv_length")
OUTPUTS = ("output", "present_key", "present_value")


def past_length(kv_length: np.ndarray, sequence: int) -> np.ndarray:
    """[B], S -> [B]: tokens in the cache before this call.

    A call of as many rows as the longest request has tokens starts from an empty cache, and shorter requests are padded
    at the end; any other call appends S rows to every request.
    """
    return np.zeros_like(kv_length) if sequence == kv_length.max() else kv_length - sequence


def reference(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    past_key: np.ndarray,
    past_value: np.ndarray,
    kv_length: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[B,S,H*D], [B,S,Hkv*D] x2, [B,Hkv,T,D] x2, [B] -> [B,S,H*D], [B,Hkv,T,D] x2.

    kv_length counts the tokens of each request after this call. Output rows past a request's end are zero here and
    unspecified in lowerings.
    """
    batch, sequence, width = query.shape
    head_dim = width // num_heads
    present_key, present_value = past_key.copy(), past_value.copy()
    past = past_length(kv_length, sequence)
    for b in range(batch):
        valid = min(sequence, int(kv_length[b] - past[b]))
        where = slice(past[b], past[b] + valid)
        for cache, new in ((present_key, key), (present_value, value)):
            cache[b, :, where] = new[b, :valid].reshape(valid, num_kv_heads, head_dim).transpose(1, 0, 2)
    query_heads = query.astype(np.float64).reshape(batch, sequence, num_heads, head_dim).transpose(0, 2, 1, 3)
    keys, values = (
        np.repeat(cache.astype(np.float64), num_heads // num_kv_heads, axis=1) for cache in (present_key, present_value)
    )
    position = past[:, None] + np.arange(sequence)
    visible = np.arange(keys.shape[2]) <= position[:, None, :, None]
    logits = np.where(visible, query_heads @ keys.transpose(0, 1, 3, 2) / np.sqrt(head_dim), -np.inf)
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    output = (exponent / exponent.sum(axis=-1, keepdims=True)) @ values
    output = np.where((position < kv_length[:, None])[:, None, :, None], output, 0.0)
    return output.transpose(0, 2, 1, 3).reshape(query.shape).astype(query.dtype), present_key, present_value
