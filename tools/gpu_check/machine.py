"""The GPU in words, and what it can do at best: copy memory, multiply matrices."""

import platform
from collections.abc import Callable, Iterator

import torch
import triton.testing

from tools.benchmark.machine import stamp
from tools.gpu_check.check import Check, Line, Measured

COPIED_BYTES = 1 << 30
MATRIX = 8192


def no_gpu(dry_run: bool) -> str | None:
    """Why nothing can run on a GPU here."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    return "--dry-run" if dry_run else None


def describe() -> str:
    """Markdown lines."""
    lines = [f"- {stamp()}, torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"]
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        lines.append(
            f"- GPU: {gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} "
            f"multiprocessors, {gpu.total_memory / 2**30:.1f} GiB; CUDA {torch.version.cuda}"
        )
    else:
        lines.append("- GPU: none that torch sees")
    return "\n".join(lines)


def milliseconds(function: Callable[[], object]) -> float:
    """Of one call, without the time that Python needs to start it: repeated in CUDA graphs, their median."""
    return triton.testing.do_bench_cudagraph(function, rep=100, return_mode="median")


def measure_machine() -> Iterator[Measured]:
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = milliseconds(lambda: target.copy_(source)) / 1e3
    yield Measured(2 * COPIED_BYTES / seconds / 1e9, "1 GiB, bytes read and written")
    a, b = (torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    seconds = milliseconds(lambda: a @ b) / 1e3
    yield Measured(2 * MATRIX**3 / seconds / 1e12, f"{MATRIX} x {MATRIX} x {MATRIX}")


MACHINE = Check(
    "machine",
    "What the chip can do",
    True,
    (Line("copy bandwidth", "GB/s"), Line("bf16 matrix product", "TFLOP/s")),
    measure_machine,
)
