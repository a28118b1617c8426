"""The attention ops: lowerings for ONNX Runtime against the NumPy contracts, the contracts against torch."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from engine.plugins import cached_attention, received_attention, visual_attention
from engine.plugins.targets.onnxruntime import ONNXRUNTIME
from tests.plugins.run_function import attention_session, run_function
from tests.tolerance import TOLERANCE
from tools.gpu_check.parity import valid_rows

HEADS = [(4, 4, 16), (14, 2, 8), (7, 1, 32), (6, 3, 24)]
Call = tuple[int, int, list[int], list[int]]
"""New rows, cache size, tokens of each request before and after the call."""
CALLS: dict[str, Call] = {
    "one token": (1, 1, [0], [1]),
    "first tokens": (1, 9, [0, 0], [1, 1]),
    "prefill": (13, 13, [0], [13]),
    "prefill into a longer buffer": (5, 31, [0], [5]),
    "ragged prefill": (9, 17, [0, 0, 0], [9, 1, 4]),
    "ragged prefill, no request fills its rows": (9, 17, [0, 0], [7, 2]),
    "decode": (1, 123, [99], [100]),
    "ragged decode": (1, 41, [40, 1, 16], [41, 2, 17]),
    "ragged decode with a first token": (1, 41, [0, 23], [1, 24]),
    "appended rows": (4, 20, [15], [19]),
    "as many rows as tokens before": (4, 20, [4], [8]),
}
APPENDS: dict[str, Call] = {
    "ragged appends": (5, 31, [11, 0, 23, 3], [16, 2, 26, 4]),
    "the longest request has as many tokens as there are rows": (7, 19, [5, 0, 6], [7, 7, 7]),
    "a request without rows": (3, 13, [9, 4, 0], [9, 7, 0]),
    "decode without a row of one request": (1, 13, [9, 13, 5], [10, 13, 6]),
    "a full buffer": (5, 17, [13, 17, 12], [17, 17, 17]),
}
"""What no lowering for ONNX Runtime can: rows of different numbers after caches of different lengths."""


def make(heads: tuple[int, int, int], call: Call, seed: int = 0) -> dict[str, np.ndarray]:
    (num_heads, num_kv_heads, dim), (sequence, cache, past, lengths) = heads, call
    batch, rng = len(lengths), np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "query": normal(batch, sequence, num_heads * dim),
        "key": normal(batch, sequence, num_kv_heads * dim),
        "value": normal(batch, sequence, num_kv_heads * dim),
        "past_key": normal(batch, num_kv_heads, cache, dim),
        "past_value": normal(batch, num_kv_heads, cache, dim),
        "past_length": np.array(past, np.int32),
        "kv_length": np.array(lengths, np.int32),
    }


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_cached_attention(heads: tuple, call: Call) -> None:
    """One request by many rows, many that start empty, or many by one row."""
    inputs = make(heads, call)
    expected = cached_attention.reference(*inputs.values(), heads[0], heads[1])
    actual = attention_session(ONNXRUNTIME, heads).run(None, inputs)
    rows = valid_rows(inputs)
    assert_allclose(actual[0][rows], expected[0][rows], **TOLERANCE["op"])
    for b, length in enumerate(inputs["kv_length"]):
        for cache in (1, 2):
            assert_allclose(actual[cache][b, :, :length], expected[cache][b, :, :length])


@pytest.mark.parametrize("call", [(5, 31, [11, 3], [16, 8]), (5, 31, [0, 3], [5, 8])])
def test_many_rows_after_several_caches_are_refused(call: Call) -> None:
    """Not computed wrongly."""
    with pytest.raises(
        InvalidArgument, match="batch_size must be 1 when sequence_length > 1 and past context is given"
    ):
        attention_session(ONNXRUNTIME, HEADS[1]).run(None, make(HEADS[1], call))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", [*CALLS.values(), *APPENDS.values()], ids=[*CALLS, *APPENDS])
def test_reference_is_torch_attention_of_each_request(heads: tuple, call: Call) -> None:
    """Of its own tokens, one after the other in memory: no buffer, no padding, no other request."""
    (num_heads, num_kv_heads, dim), inputs = heads, make(heads, call)
    output, *presents = cached_attention.reference(*inputs.values(), num_heads, num_kv_heads)
    for b, (past, stop) in enumerate(zip(inputs["past_length"], inputs["kv_length"], strict=True)):
        valid = stop - past
        query = torch.from_numpy(inputs["query"][b, :valid]).double().view(valid, num_heads, dim).transpose(0, 1)
        held = []
        for name, present in zip(("key", "value"), presents, strict=True):
            new = torch.from_numpy(inputs[name][b, :valid]).view(valid, num_kv_heads, dim).transpose(0, 1)
            held.append(torch.cat([torch.from_numpy(inputs[f"past_{name}"][b, :, :past]), new], dim=1).double())
            assert_array_equal(present[b, :, :stop], held[-1].float())
            assert_array_equal(present[b, :, stop:], inputs[f"past_{name}"][b, :, stop:])
        causal = torch.ones(int(valid), int(stop), dtype=torch.bool).tril(int(past))
        expected = torch.nn.functional.scaled_dot_product_attention(query, *held, attn_mask=causal, enable_gqa=True)
        assert_allclose(output[b, :valid], expected.transpose(0, 1).flatten(1), **TOLERANCE["op"])
        assert not output[b, valid:].any()


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
    inputs = make(heads, (rows, rows, [0], [rows]))
    inputs["score_row"] = np.array([[8, 9, 10]])
    inputs["score_weight"] = np.ones((1, 3), np.float32)
    inputs["score_mask"] = visual_attention.causal_score_mask(inputs["score_row"], inputs["past_length"], rows)
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
