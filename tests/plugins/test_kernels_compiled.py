"""The Triton kernels compiled ahead of time for every supported GPU; no GPU is needed."""

import re

import pytest

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from engine.plugins.compile import CAPABILITIES, compile_kernel, usage
from engine.plugins.visual_attention.kernel import COMPACT, Heads, attend_kernel, prefill_tile
from tools.gpu_check.kernels import HEADS, PREFILL, TYPES, compile_named, kernels

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""What one block of threads may have (CUDA C++ Programming Guide, technical specifications per compute capability)."""
TENSOR_CORES = {90: r"\bwgmma\.mma_async\S+bf16\.bf16", 100: r"\btcgen05\.mma\S+f16"}
"""How the larger chips multiply matrices; the others do it as ever."""


@pytest.mark.parametrize("name", kernels(90))
def test_kernel(name: str) -> None:
    """Deterministic, without registers that spill, and started with its own arguments only."""
    binary = compile_named(name, 90)
    assert not re.search(r"\b(atom|red)\.", binary.ptx)
    parameters = re.search(r"\.entry \w+\(([^)]*)\)", binary.ptx)
    assert parameters is not None
    assert parameters[1].count(".param") == len(kernels(90)[name].types)
    assert usage(binary.ptx, 90).spill_bytes == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention_compiles_for(capability: int) -> None:
    binary = compile_named(PREFILL, capability)
    assert f".target sm_{capability}" in binary.ptx
    assert binary.cubin.startswith(b"\x7fELF")
    assert re.search(TENSOR_CORES.get(capability, r"\bmma\.sync\S+bf16\.bf16"), binary.ptx)
    assert binary.shared_bytes <= SHARED_BYTES[capability]
    assert usage(binary.ptx, capability).spill_bytes == 0


def test_compact_tile_runs_without_asking_for_shared_memory() -> None:
    assert compile_kernel(attend_kernel(HEADS, COMPACT), TYPES, 90).shared_bytes <= 48 << 10


@pytest.mark.parametrize("head_dim", [64, 80, 96])
def test_head_sizes_compile(head_dim: int) -> None:
    kernel = attend_kernel(Heads(8, 2, head_dim), prefill_tile(80))
    assert compile_kernel(kernel, {"T": "fp16"}, 80).name == "attend"
