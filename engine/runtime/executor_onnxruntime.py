"""Executor on ONNX Runtime: a session over buffers in host memory."""

from pathlib import Path

import numpy as np

from engine.runtime.arrays import Array
from engine.runtime.executor import Threads
from engine.runtime.executor_onnxruntime_session import CPU, Place, Session, in_host_memory, open_session
from engine.runtime.host_memory import give_back, reserve


class OnnxRuntimeExecutor:
    """Arrays are read and written where they are, unless an input is of another type than the engine reads."""

    def __init__(self, session: Session) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self._session, self._dtypes = session, session.dtypes
        self._places: dict[str, Place] = {}
        self._copies: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        """Inputs of another type than the engine reads: what the caller bound, and what it is copied to."""

    @classmethod
    def load(cls, path: Path, threads: Threads) -> "OnnxRuntimeExecutor":
        """Raises EngineError."""
        return cls(open_session(path, threads, {CPU: {}}))

    def release(self) -> None:
        self._session.release()
        self._places.clear()
        self._copies.clear()

    def zeros(self, name: str, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape, self._dtypes[name])

    def put(self, name: str, array: np.ndarray) -> Array:
        return array.astype(self._dtypes[name], copy=False)

    def reserve(self, name: str, shape: tuple[int, ...]) -> Array:
        return reserve(shape, np.dtype(self._dtypes[name]))

    def give_back(self, part: Array) -> None:
        give_back(part)

    def bind_input(self, name: str, array: Array) -> None:
        self._copies.pop(name, None)
        if array.dtype != self._dtypes[name]:
            self._copies[name] = array, np.empty(array.shape, self._dtypes[name])
            array = self._copies[name][1]
        if self._is_new(name, array):
            self._session.bind_input(name, array, self._places[name])

    def bind_output(self, name: str, array: Array) -> None:
        if self._is_new(name, array):
            self._session.bind_output(name, array, self._places[name])

    def run(self) -> None:
        for source, read in self._copies.values():
            read[...] = source
        self._session.run()

    def _is_new(self, name: str, array: np.ndarray) -> bool:
        assert array.flags.c_contiguous, f"{name} is not contiguous"
        before, self._places[name] = self._places.get(name), in_host_memory(array)
        return before != self._places[name]
