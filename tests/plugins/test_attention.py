"""The attention ops: lowerings for ONNX Runtime against the NumPy contracts, the contracts against torch."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from engine.plugins import cached_attention, received_attention, visual_attention
from engine.plugins.cached_attention.onnxruntime import SHARED
from engine.plugins.lowering import ONNXRUNTIME, ONNXRUNTIME_GPU, Lowering
from tests.plugins.run_function import run_function
from tests.tolerance import TOLERANCE

HEADS = [(4, 4, 16), (14, 2, 8), (7, 1, 32), (6, 3, 24)]
# batch, new rows, cache size, tokens of each request after the call
CALLS = {
    "one token": (1, 1, 1, [1]),
    "prefill": (1, 13, 13, [13]),
    "prefill into a longer buffer": (1, 5, 31, [5]),
    "ragged prefill": (3, 9, 17, [9, 1, 4]),
    "decode": (1, 1, 123, [100]),
    "ragged decode": (3, 1, 41, [41, 2, 17]),
    "appended rows": (1, 4, 20, [19]),
}


def make(heads: tuple[int, int, int], call: tuple[int, int, int, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    (num_heads, num_kv_heads, dim), (batch, sequence, cache, lengths) = heads, call
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "query": normal(batch, sequence, num_heads * dim),
        "key": normal(batch, sequence, num_kv_heads * dim),
        "value": normal(batch, sequence, num_kv_heads * dim),
        "past_key": normal(batch, num_kv_heads, cache, dim),
        "past_value": normal(batch, num_kv_heads, cache, dim),
        "kv_length": np.array(lengths, np.int32),
    }


def valid_rows(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """[B,S]: rows that are not padding."""
    sequence, length = inputs["query"].shape[1], inputs["kv_length"]
    return np.arange(sequence) < np.minimum(length, sequence)[:, None]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("lowering", "grouped"),
    [(ONNXRUNTIME, False), (ONNXRUNTIME, True), (ONNXRUNTIME_GPU, False)],
    ids=["cpu", "grouped", "gpu"],
)
def test_cached_attention(heads: tuple, call: tuple, lowering: Lowering, grouped: bool) -> None:
    inputs = make(heads, call)
    expected = cached_attention.reference(*inputs.values(), heads[0], heads[1])
    if lowering.shared_inputs is not None:
        last = inputs["kv_length"][:, None] - 1
        mask = received_attention.causal_score_mask(last, inputs["past_key"].shape[2])
        one_row = inputs["query"].shape[1] == 1
        place = np.zeros_like(inputs["past_key"][:, :, :1], np.int64) + last[:, :, None, None]
        inputs |= dict(zip(SHARED, (np.array([grouped and one_row]), mask, place), strict=True))
    actual = run_function(lowering.cached_attention(*heads), inputs)
    rows = valid_rows(inputs)
    assert_allclose(actual[0][rows], expected[0][rows], **TOLERANCE["op"])
    for b, length in enumerate(inputs["kv_length"]):
        for cache in (1, 2):
            assert_allclose(actual[cache][b, :, :length], expected[cache][b, :, :length])


def make_received(
    heads: tuple[int, int, int], cache: int, rows: int, columns: int, batch: int
) -> dict[str, np.ndarray]:
    """Rows anywhere in a cache; some count half or not at all."""
    (num_heads, num_kv_heads, dim), rng = heads, np.random.default_rng(2)
    return {
        "query": rng.standard_normal((batch, rows, num_heads * dim), dtype=np.float32),
        "key_cache": rng.standard_normal((batch, num_kv_heads, cache, dim), dtype=np.float32),
        "score_mask": received_attention.causal_score_mask(rng.integers(0, cache, (batch, rows)), cache),
        "score_weight": rng.choice([0.0, 1.0, 0.5], (batch, rows)).astype(np.float32),
        "visual_column": rng.integers(0, cache, (batch, columns)),
    }


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("cache", "rows", "columns"), [(1, 1, 1), (17, 1, 5), (41, 3, 7), (123, 33, 100)])
def test_received_attention(heads: tuple, batch: int, cache: int, rows: int, columns: int) -> None:
    inputs = make_received(heads, cache, rows, columns, batch)
    expected = received_attention.reference(*inputs.values(), heads[0], heads[1])
    (actual,) = run_function(received_attention.received_attention(*heads), inputs)
    assert actual.shape == (batch, columns)
    assert_allclose(actual, expected, **TOLERANCE["op"])


def test_reference_is_torch_attention() -> None:
    """The contract's output and received attention against torch's softmax attention with a full matrix."""
    heads, rows = (6, 2, 8), 11
    inputs = make(heads, (1, rows, rows, [rows]))
    inputs["score_row"] = np.array([[8, 9, 10]])
    inputs["score_weight"] = np.ones((1, 3), np.float32)
    inputs["score_mask"] = visual_attention.causal_score_mask(inputs["score_row"], inputs["kv_length"], rows, rows)
    inputs["visual_column"] = np.array([[2, 3, 4, 5]])
    output, _, _, received = visual_attention.reference(*inputs.values(), heads[0], heads[1])

    def split(name: str, count: int) -> torch.Tensor:
        return torch.from_numpy(inputs[name]).double().view(1, rows, count, 8).transpose(1, 2)

    q, k, v = split("query", 6), split("key", 2), split("value", 2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert_allclose(output[0], expected[0].transpose(0, 1).reshape(rows, -1), **TOLERANCE["op"])
    logits = q @ k.repeat_interleave(3, dim=1).transpose(2, 3) / 8**0.5
    causal = torch.ones(rows, rows, dtype=torch.bool).tril()
    probabilities = logits.masked_fill(~causal, float("-inf")).softmax(-1)
    assert_allclose(received[0, 0], probabilities[0, :, 8:, 2:6].sum((0, 1)), **TOLERANCE["op"])


def test_received_attention_follows_the_columns() -> None:
    """Naming the visual tokens in another order names their attention in that order."""
    inputs = make_received((4, 2, 8), 9, 2, 5, batch=1) | {"score_weight": np.ones((1, 2), np.float32)}
    function = received_attention.received_attention(4, 2, 8)
    columns, order = np.array([[1, 2, 3, 4, 5]]), np.array([3, 0, 4, 1, 2])
    inputs["score_mask"][:] = 0
    (straight,) = run_function(function, {**inputs, "visual_column": columns})
    (permuted,) = run_function(function, {**inputs, "visual_column": columns[:, order]})
    assert_allclose(permuted, straight[:, order])
    assert not np.allclose(permuted, straight)
