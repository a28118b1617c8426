"""The Triton kernels, interpreted on the CPU, against the NumPy contract."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from tests.tolerance import TOLERANCE
from tools.gpu_check.interpreter import interpreter
from tools.gpu_check.parity import ATTENTION_SHAPES, AttentionShape, attention_parity, prune_parity


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as pool:
        yield pool


def check_attention(process: ProcessPoolExecutor, shape: AttentionShape) -> None:
    agreement = process.submit(attention_parity, shape, "cpu", "float32").result()
    assert agreement.output < TOLERANCE["op"]["rtol"]
    assert agreement.received < TOLERANCE["op"]["rtol"]
    assert agreement.repeatable


@pytest.mark.parametrize("shape", ATTENTION_SHAPES.values(), ids=ATTENTION_SHAPES.keys())
def test_visual_attention(process: ProcessPoolExecutor, shape: AttentionShape) -> None:
    check_attention(process, shape)


@pytest.mark.parametrize("heads", [(4, 4, 64), (4, 1, 80), (7, 1, 96), (8, 1, 128)])
@pytest.mark.parametrize("name", ["ragged prefill", "decode, several splits"])
def test_heads_of_every_kind(process: ProcessPoolExecutor, name: str, heads: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, head_dim = heads
    shape = replace(ATTENTION_SHAPES[name], num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    check_attention(process, shape)


@pytest.mark.parametrize(("batch", "sequence", "kept"), [(1, 1, 1), (1, 7, 7), (2, 9, 4)])
@pytest.mark.parametrize(("width", "half_dim"), [(48, 4), (1030, 40)])
def test_prune_visual_tokens(
    process: ProcessPoolExecutor, batch: int, sequence: int, kept: int, width: int, half_dim: int
) -> None:
    assert process.submit(prune_parity, batch, sequence, kept, width, half_dim, "cpu", "float32").result()
