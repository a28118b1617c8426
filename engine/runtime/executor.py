"""What runs a compiled engine. An executor knows buffers and names; it knows no models and no phases."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.config import Target
from engine.errors import ManifestError, RequestError


class Executor(Protocol):
    """A loaded engine with named buffers bound to it."""

    def bind_input(self, name: str, array: np.ndarray) -> None:
        """Read this input from `array` at every run, in place, until another is bound; contiguous, never copied."""

    def bind_output(self, name: str, array: np.ndarray) -> None:
        """Write this output into `array`, which may be an input's buffer where the graph updates in place."""

    def run(self) -> None:
        """Run once over what is bound. Raises RuntimeError when the engine fails."""


def resolve_threads(threads: int | None) -> int:
    """None is all cores that this process may use. Raises RequestError for fewer than 1 or more than there are."""
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return cores
    if not 1 <= threads <= cores:
        raise RequestError(f"threads {threads} is outside 1..{cores}, the cores of this process; choose one inside")
    return threads


AllReduce = Callable[[np.ndarray], None]
"""Replaces an array by its sum over all ranks, in place."""


def load(target: Target, path: Path, threads: int | None) -> Executor:
    """Load one compiled engine; `path` without the suffix that its target gives the file. Raises ManifestError.

    threads: None shares those of a process that has called `load_rank`.
    """
    if target is Target.ONNXRUNTIME:
        from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor

        return OnnxRuntimeExecutor(path.with_suffix(".onnx"), threads)
    raise _needs_gpu(target, path)


def load_rank(target: Target, path: Path, threads: int, all_reduce: AllReduce) -> Executor:
    """Load one rank's engine; once per process, which from then on loads engines that share `threads` only."""
    if target is Target.ONNXRUNTIME:
        from engine.runtime.executor_onnxruntime_stages import StagesExecutor

        return StagesExecutor(path.with_suffix(".onnx"), threads, all_reduce)
    raise _needs_gpu(target, path)


def _needs_gpu(target: Target, path: Path) -> ManifestError:
    return ManifestError(
        f"{path} was built for target {target}, which needs an NVIDIA GPU and a runtime that this version does not "
        f"have; rebuild with --target {Target.ONNXRUNTIME} to run it on a CPU"
    )
