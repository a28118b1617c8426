"""What runs a compiled engine. An executor knows buffers and names; it knows no models and no phases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engine.runtime.arrays import Array
from engine.runtime.host_memory import give_back, reserve

AllReduce = Callable[[np.ndarray], None]
"""Replaces an array by its sum over all ranks, in place."""


@dataclass(frozen=True)
class SharedThreads:
    """A pool of threads, and memory, of a process; every engine that is loaded with it shares them."""

    threads: int


Threads = int | SharedThreads
"""What an engine computes with: so many threads of its own, or shared ones."""


class Buffers(Protocol):
    """Where an engine's inputs and outputs lie."""

    def zeros(self, name: str, shape: tuple[int, ...]) -> Array:
        """A buffer of the type of this input or output, where the engine reads and writes."""

    def put(self, name: str, array: np.ndarray) -> Array:
        """A buffer with what this input is to be in many runs."""

    def reserve(self, name: str, shape: tuple[int, ...]) -> Array:
        """Like `zeros`, of which most may never be written; on the host, only what is written takes memory."""

    def give_back(self, part: Array) -> None:
        """Make a contiguous part of what was reserved zeros again, which on the host take no memory."""


class Executor(Buffers, Protocol):
    """A loaded engine with named buffers bound to it."""

    def release(self) -> None:
        """Hold no more memory for what is bound; everything is bound anew before the next run."""

    def bind_input(self, name: str, array: Array) -> None:
        """Read this input from `array` at every run, until another is bound; contiguous.

        A NumPy array may be bound where an engine does not read host memory, or of another float type: it is copied at
        every run.
        """

    def bind_output(self, name: str, array: Array) -> None:
        """Write this output into `array`, made by `zeros`; it may be an input's where the graph updates in place."""

    def run(self) -> None:
        """Run once over what is bound. Raises RuntimeError when the engine fails."""


@runtime_checkable
class CollectiveExecutor(Executor, Protocol):
    """The engine of a rank that sums over all ranks by itself."""

    def set_communicator(self, communicator: Any) -> None:
        """Over which it sums, before the first run; waits until every rank has called it. Raises EngineError."""


class HostBuffers:
    """Buffers in host memory; what is not given as an array is float32."""

    def release(self) -> None:
        """What is bound is held until something else is."""

    def zeros(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def put(self, name: str, array: np.ndarray) -> np.ndarray:
        return array

    def reserve(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return reserve(shape, np.dtype(np.float32))

    def give_back(self, part: np.ndarray) -> None:
        give_back(part)
