"""Triton kernels compiled ahead of time; no GPU is needed."""

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

PTX_VERSION = 88
"""CUDA 12.9: the oldest that knows all of `CAPABILITIES`."""
Size = Any
"""An integer, or a symbol for one that knows the same arithmetic."""
SCRATCH_POINTERS = 2
"""Triton ends every kernel's parameters with two pointers to scratch memory, which ours do not use."""


@dataclass(frozen=True)
class Kernel:
    """A Triton function and all that is fixed when it is compiled.

    types: of its arguments before the constants, as in `*i64`; a capital letter is chosen when it is compiled.
    """

    function: Any
    types: Sequence[str]
    constants: Mapping[str, int | float]
    num_warps: int
    num_stages: int = 1

    def launch(self, grid: tuple[int, ...], *arguments: Any) -> None:
        """On torch tensors and integers, in the order of `types`."""
        self.function[grid](
            *arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=True,
        )


@dataclass(frozen=True)
class Binary:
    """name: of the entry; its parameters are the kernel's arguments and nothing else. shared_bytes: dynamic."""

    name: str
    ptx: str
    cubin: bytes
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class Usage:
    """Of one thread: 32-bit registers, and bytes that did not fit into them (the larger of stores and loads)."""

    registers: int
    spill_bytes: int


def compile_kernel(kernel: Kernel, types: Mapping[str, str], capability: int) -> Binary:
    """For GPUs of one compute capability, as in 90. types: what its letters stand for, as in {"T": "bf16"}."""
    chosen = ["*" + types.get(kind[1:], kind[1:]) if kind.startswith("*") else kind for kind in kernel.types]
    arguments = kernel.function.arg_names
    signature = dict(zip(arguments, chosen, strict=False)) | dict.fromkeys(kernel.constants, "constexpr")
    assert list(signature) == arguments, f"{kernel.function.__name__}: types and constants do not fit its arguments"
    # Tensors start at multiples of 16 bytes, so that loads can be wide.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(chosen) if kind.startswith("*")}
    compiled = triton.compile(
        ASTSource(kernel.function, signature, dict(kernel.constants), aligned),
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": kernel.num_warps,
            "num_stages": kernel.num_stages,
            "enable_fp_fusion": True,
            "ptx_version": PTX_VERSION,
        },
    )
    metadata = compiled.metadata
    ptx = without_scratch_pointers(compiled.asm["ptx"], metadata.name)
    return Binary(metadata.name, ptx, compiled.asm["cubin"], metadata.num_warps * 32, metadata.shared)


def without_scratch_pointers(ptx: str, name: str) -> str:
    """A kernel that is started with its own arguments only must not declare more."""
    head, parameters, body = re.split(rf"(?<=\.entry {name}\()([^)]*)(?=\))", ptx, maxsplit=1)
    *kept, first, second = parameters.split(",")
    assert len((first, second)) == SCRATCH_POINTERS
    for parameter in (first, second):
        assert parameter.split()[-1] not in body, f"{name} uses scratch memory"
    return head + ",".join(kept) + "\n" + body


def usage(ptx: str, capability: int) -> Usage:
    """What the assembler says of a kernel."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "kernel.ptx")
        path.write_text(ptx, encoding="utf-8")
        architecture = sm_arch_from_capability(capability)
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", path, "-o", path.with_suffix(".o")]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.findall(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return Usage(int(registers[0]), max(map(int, spills)))
