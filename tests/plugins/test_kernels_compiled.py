"""The Triton kernels compiled ahead of time for every supported GPU; no GPU is needed."""

import re

import pytest

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from engine.gpu import CAPABILITIES
from engine.plugins.compile import compile_kernel, usage
from engine.plugins.visual_attention.kernel import COMPACT, Heads, attend_kernel, prefill_tile
from engine.plugins.visual_attention.kernel_receive import receive_kernel
from tools.gpu_check.kernels import HEADS, PREFILL, TYPES, compile_named, kernels

SHARED_BYTES = dict.fromkeys((86, 89, 120, 121), 99 << 10) | {80: 163 << 10} | dict.fromkeys((90, 100, 103), 227 << 10)
"""What one block of threads may have (CUDA C++ Programming Guide, technical specifications per compute capability)."""
TENSOR_CORES = {90: r"\bwgmma\.mma_async\S+bf16\.bf16", **dict.fromkeys((100, 103), r"\btcgen05\.mma\S+f16")}
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


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_one_tactic_of_each_kernel_asks_for_no_shared_memory(capability: int) -> None:
    for kernel in (attend_kernel(HEADS, COMPACT), receive_kernel(HEADS)):
        assert compile_kernel(kernel, TYPES, capability).shared_bytes <= 48 << 10


@pytest.mark.parametrize("head_dim", [64, 80, 96])
def test_head_sizes_compile(head_dim: int) -> None:
    kernel = attend_kernel(Heads(8, 2, head_dim), prefill_tile(80))
    assert compile_kernel(kernel, {"T": "fp16"}, 80).name == "attend"
