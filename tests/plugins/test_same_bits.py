"""What ONNX Runtime computes for a request is the same bits whatever runs beside it: the length of the cache buffers
follows the longest request of a batch, and so it must not show, nor what others left behind a request's end.

Buffers are multiples of what sums over keys take at once.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from onnxruntime import InferenceSession

from engine.plugins import received_attention
from engine.plugins.targets.onnxruntime import ONNXRUNTIME
from tests.plugins.run_function import attention_session, run_function

BUFFERS = (512, 768, 1024, 2048)
THREADS = (1, 2, 4)
"""They share the work out, even if a machine has fewer cores."""
HEADS = [(4, 4, 96), (6, 3, 64), (8, 4, 128), (12, 2, 128), (14, 2, 64), (7, 1, 80)]
"""Groups of 1, 2, 6 and 7 query heads."""
LENGTHS = (1, 2, 63, 255, 256, 257, 400, 512)
"""Tokens of a request after its row."""
Heads = tuple[int, int, int]


def request(heads: Heads, rows: int, length: int) -> dict[str, np.ndarray]:
    """query [S,H*D], key, value [S,Hkv*D] of new rows; past_key, past_value [Hkv,T,D], as long as they must be."""
    (num_heads, num_kv_heads, dim), rng = heads, np.random.default_rng(length)
    widths = {"query": num_heads * dim, "key": num_kv_heads * dim, "value": num_kv_heads * dim}
    found = {name: rng.standard_normal((rows, width), dtype=np.float32) for name, width in widths.items()}
    for name in ("past_key", "past_value"):
        found[name] = rng.standard_normal((num_kv_heads, length - rows, dim), dtype=np.float32)
    return found


def leftovers(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers, larger than a request's own; others in a buffer of another length."""
    return np.resize(9 * np.random.default_rng(shape[2]).standard_normal(10007, dtype=np.float32), shape)


def call(
    heads: Heads, requests: Sequence[dict[str, np.ndarray]], buffer: int, threads: int = 1
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Output rows and present keys of each request, in buffers with something in them behind its end."""
    inputs = {name: np.stack([one[name] for one in requests]) for name in ("query", "key", "value")}
    past = np.array([one["past_key"].shape[1] for one in requests], np.int32)
    for name in ("past_key", "past_value"):
        inputs[name] = leftovers((len(requests), heads[1], buffer, heads[2]))
        for held, one in zip(inputs[name], requests, strict=True):
            held[:, : one[name].shape[1]] = one[name]
    length = past + np.int32(inputs["query"].shape[1])
    inputs |= {"past_length": past, "kv_length": length}
    outputs, keys, _ = session(heads, threads).run(None, inputs)
    return list(outputs), [key[:, :stop] for key, stop in zip(keys, length, strict=True)]


@cache
def session(heads: Heads, threads: int) -> InferenceSession:
    return attention_session(ONNXRUNTIME, heads, threads)


def same(actual: tuple[list, list], expected: tuple[list, list]) -> None:
    for ours, theirs in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("heads", HEADS)
def test_one_row_alone_and_together(heads: Heads, threads: int) -> None:
    """Over every buffer, with mates of other lengths before and after it, and none."""
    requests = [request(heads, 1, length) for length in LENGTHS]
    alone = [call(heads, [one], BUFFERS[0]) for one in requests]
    expected = [one for (one,), _ in alone], [one for _, (one,) in alone]
    for buffer in BUFFERS:
        same(call(heads, requests, buffer, threads), expected)
        for index in (0, 3, len(LENGTHS) - 1):
            same(call(heads, [requests[index]], buffer, threads), alone[index])
            two = [5, index]
            same(
                call(heads, [requests[i] for i in two], buffer, threads),
                ([expected[0][i] for i in two], [expected[1][i] for i in two]),
            )


@pytest.mark.parametrize(("rows", "length"), [(37, 37), (37, 301), (300, 300), (5, 512)])
@pytest.mark.parametrize("heads", HEADS)
def test_many_rows_over_every_buffer(heads: Heads, rows: int, length: int) -> None:
    one = request(heads, rows, length)
    expected = call(heads, [one], BUFFERS[0])
    for buffer in BUFFERS[1:]:
        same(call(heads, [one], buffer), expected)
        same(call(heads, [one], buffer, THREADS[-1]), expected)


def received(
    heads: Heads, batch: int, rows: int, buffer: int, used: slice = slice(None), threads: int = 1
) -> np.ndarray:
    """[B,V] of these requests of a batch, whose caches hold something behind their ends."""
    (num_heads, num_kv_heads, dim), rng = heads, np.random.default_rng(0)
    length = 512 - 61 * np.arange(batch)
    written = rng.standard_normal((batch, num_kv_heads, 512, dim), dtype=np.float32)
    keys = leftovers((batch, num_kv_heads, buffer, dim))
    for held, new, stop in zip(keys, written, length, strict=True):
        held[:, :stop] = new[:, :stop]
    position = length[:, None] - 1 - rng.integers(0, 30, (batch, rows))
    inputs = {
        "query": rng.standard_normal((batch, rows, num_heads * dim), dtype=np.float32),
        "key_cache": keys,
        "score_mask": received_attention.causal_score_mask(position, buffer),
        "score_weight": rng.choice([0.0, 1.0], (batch, rows), p=[0.2, 0.8]).astype(np.float32),
        "visual_column": rng.integers(0, length.min(), (batch, 90)),
    }
    function = received_attention.received_attention(*heads)
    (result,) = run_function(function, {name: np.ascontiguousarray(x[used]) for name, x in inputs.items()}, threads)
    return result


@pytest.mark.parametrize("rows", [1, 5, 32])
@pytest.mark.parametrize("heads", HEADS)
def test_received_attention_alone_and_together(heads: Heads, rows: int) -> None:
    batch = 3
    expected = np.concatenate([received(heads, batch, rows, BUFFERS[0], slice(b, b + 1)) for b in range(batch)])
    for buffer in BUFFERS:
        for threads in (1, THREADS[-1]):
            assert_array_equal(received(heads, batch, rows, buffer, threads=threads), expected)
            assert_array_equal(received(heads, batch, rows, buffer, slice(1, 2), threads), expected[1:2])
