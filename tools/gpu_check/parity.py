"""The kernels against the NumPy reference, on odd shapes; in Triton's interpreter or on a GPU."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.plugins import prune_visual_tokens, visual_attention
from engine.plugins.prune_visual_tokens import launch as prune_launch
from engine.plugins.visual_attention import launch


@dataclass(frozen=True)
class AttentionShape:
    """A call of S rows. cache: T; past, lengths: tokens of each request before and after it; images: places of runs of
    visual tokens.

    Of `scored` rows the last is padding, unless there is only one, and so are all of a request without valid rows.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    sequence: int
    cache: int
    past: tuple[int, ...]
    lengths: tuple[int, ...]
    images: tuple[tuple[int, int], ...] = ((0, 1),)
    scored: int = 1


@dataclass(frozen=True)
class Agreement:
    """Largest differences over the largest expected value; repeatable: a second run gave the same bits."""

    output: float
    received: float
    repeatable: bool


ATTENTION_SHAPES = {
    "one token": AttentionShape(4, 4, 64, 1, 1, (0,), (1,)),
    "prefill, 2 images": AttentionShape(14, 2, 64, 101, 128, (0,), (101,), images=((3, 40), (51, 90)), scored=9),
    "prefill, keys in several blocks": AttentionShape(16, 2, 128, 71, 203, (0,), (71,), images=((0, 70),), scored=17),
    "ragged prefill": AttentionShape(8, 2, 80, 37, 53, (0, 0, 0), (37, 1, 20), images=((0, 1), (5, 19)), scored=3),
    "ragged prefill, whole and masked blocks": AttentionShape(
        4, 1, 96, 150, 150, (0, 0), (150, 131), images=((7, 97),), scored=5
    ),
    "appended rows": AttentionShape(8, 2, 64, 5, 150, (136,), (141,), images=((2, 130),), scored=4),
    "ragged appends": AttentionShape(
        8, 2, 64, 37, 203, (0, 90, 5, 166, 64), (37, 91, 24, 203, 64), images=((0, 3), (4, 80)), scored=5
    ),
    "ragged appends, no request is full": AttentionShape(
        6, 3, 80, 19, 61, (0, 40, 3), (11, 40, 20), images=((1, 17),), scored=3
    ),
    "decode, one split": AttentionShape(7, 1, 80, 1, 123, (99,), (100,), images=((1, 90),)),
    "decode, several splits": AttentionShape(8, 2, 128, 1, 701, (649,), (650,), images=((0, 300), (340, 640))),
    "ragged decode, splits without keys": AttentionShape(
        4, 4, 96, 1, 600, (599, 2, 256), (600, 3, 257), images=((0, 3),)
    ),
    "ragged decode, one request without a row": AttentionShape(
        7, 1, 80, 1, 300, (0, 299, 41), (1, 299, 42), images=((0, 1), (3, 30))
    ),
}


def attention_inputs(shape: AttentionShape, seed: int = 0) -> dict[str, np.ndarray]:
    """The contract's inputs, in its order."""
    rng = np.random.default_rng(seed)
    batch, sequence = len(shape.lengths), shape.sequence
    past, lengths = np.array(shape.past, np.int32), np.array(shape.lengths, np.int32)
    valid = lengths - past

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32)

    caches = (batch, shape.num_kv_heads, shape.cache, shape.head_dim)
    row = rng.integers(0, np.maximum(valid, 1)[:, None], (batch, shape.scored))
    weight = np.where(valid[:, None] > 0, rng.choice([1.0, 0.5], row.shape), 0).astype(np.float32)
    if shape.scored > 1:
        weight[:, -1] = 0
    columns = np.concatenate([np.arange(*image) for image in shape.images])
    return {
        "query": normal(batch, sequence, shape.num_heads * shape.head_dim),
        "key": normal(batch, sequence, shape.num_kv_heads * shape.head_dim),
        "value": normal(batch, sequence, shape.num_kv_heads * shape.head_dim),
        "past_key": normal(*caches),
        "past_value": normal(*caches),
        "past_length": past,
        "kv_length": lengths,
        "score_row": row,
        "score_weight": weight,
        "score_mask": visual_attention.causal_score_mask(row, past, shape.cache),
        # A shorter request repeats its first place.
        "visual_column": np.where(columns < lengths[:, None], columns, 0),
    }


def valid_rows(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """[B,S]: rows that are not padding."""
    return np.arange(inputs["query"].shape[1]) < (inputs["kv_length"] - inputs["past_length"])[:, None]


def attention_parity(shape: AttentionShape, device: str, dtype: str) -> Agreement:
    """dtype: torch's name, of query and caches. What was never written to the caches is NaN."""
    inputs = attention_inputs(shape)
    tensors = ("query", "key", "value", "past_key", "past_value")
    inputs |= {name: _rounded(inputs[name], dtype) for name in tensors}
    expected = visual_attention.reference(**inputs, num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads)
    written = np.arange(shape.cache) < inputs["kv_length"][:, None]
    caches = (np.where(written[:, None, :, None], present, np.nan) for present in expected[1:3])
    floats = [torch.from_numpy(x).to(device, getattr(torch, dtype)) for x in (inputs["query"], *caches)]
    names = ("past_length", "kv_length", "score_row", "score_weight", "visual_column")
    others = [torch.from_numpy(inputs[name]).to(device) for name in names]
    (output, received), again = (
        [tensor.float().cpu().numpy() for tensor in launch.visual_attention(*floats, *others)] for _ in range(2)
    )
    valid = valid_rows(inputs)
    return Agreement(
        _error(output[valid], expected[0][valid]),
        _error(received, expected[3]),
        np.array_equal(output[valid], again[0][valid]) and np.array_equal(received, again[1]),
    )


def prune_parity(batch: int, sequence: int, kept: int, width: int, half_dim: int, device: str, dtype: str) -> bool:
    """Whether the kernel of prune_visual_tokens gives the reference's bits; the angles are float32."""
    rng = np.random.default_rng(0)
    hidden, cos, sin = (
        rng.standard_normal((batch, sequence, size), dtype=np.float32) for size in (width, half_dim, half_dim)
    )
    hidden = _rounded(hidden, dtype)
    keep_index = np.sort(np.stack([rng.permutation(sequence)[:kept] for _ in range(batch)]), axis=1)
    expected = prune_visual_tokens.reference(hidden, cos, sin, keep_index)
    inputs = [torch.from_numpy(x).to(device) for x in (hidden, cos, sin, keep_index)]
    actual = prune_launch.prune_visual_tokens(inputs[0].to(getattr(torch, dtype)), *inputs[1:])
    return all(np.array_equal(ours.float().cpu(), theirs) for ours, theirs in zip(actual, expected, strict=True))


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 that `dtype` can hold."""
    return torch.from_numpy(x).to(getattr(torch, dtype)).float().numpy()


def _error(actual: np.ndarray, expected: np.ndarray) -> float:
    """NaN anywhere in `actual` is NaN."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
