"""Executor on ONNX Runtime: a session over buffers in host memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from engine.errors import EngineError, ManifestError, Setting
from engine.runtime.arrays import Array
from engine.runtime.host_memory import give_back, reserve
from engine.runtime.huge_pages import huge_pages
from engine.target import Device

CPU = "CPUExecutionProvider"
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
"""Of inputs and outputs, by ONNX Runtime's name."""


@dataclass(frozen=True)
class Declared:
    """What a graph says of an input or output; a dimension is a number or a name."""

    type: str
    dims: tuple[int | str, ...]


def share_threads(threads: int) -> None:
    """Make pools of threads and memory that all engines loaded from here on share; once in a process."""
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)


class OnnxRuntimeExecutor:
    """A session and its persistent binding; buffers are passed by address."""

    def __init__(self, path: Path, threads: int | None, providers: tuple[str, ...] = (CPU,)) -> None:
        """threads: of this engine; None shares the process's (`share_threads`), and its memory pool, with others."""
        options = onnxruntime.SessionOptions()
        if threads is None:
            options.use_per_session_threads = False
            options.add_session_config_entry("session.use_env_allocators", "1")
        else:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        # Threads that look for work after a run would take the cores from the engine that runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Patterns are kept per input shape, and a server meets thousands of them.
        options.enable_mem_pattern = False
        options.log_severity_level = 4
        try:
            with huge_pages():
                self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:
            raise ManifestError(f"{path} cannot be loaded ({error}); rebuild it with sgl build") from error
        # ONNX Runtime itself would go on with what is left.
        if missing := [provider for provider in providers if provider not in self._session.get_providers()]:
            raise EngineError(
                f"device {Device.CUDA} needs a GPU with NVIDIA's driver, CUDA and cuDNN, and {missing[0]} found none "
                "that it can use; install them or give ",
                Setting("device"),
                f" {Device.CPU}",
            )
        self.inputs = {value.name: Declared(value.type, tuple(value.shape)) for value in self._session.get_inputs()}
        self.outputs = {value.name: Declared(value.type, tuple(value.shape)) for value in self._session.get_outputs()}
        declared = self.inputs | self.outputs
        self._dtypes = {name: DTYPES[value.type] for name, value in declared.items() if value.type in DTYPES}
        self._binding = self._session.io_binding()
        # The binding holds addresses only: what is bound must stay alive here.
        self._bound: dict[str, Array] = {}
        self._copies: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        """Inputs of another type than the engine reads: what the caller bound, and what it is copied to."""

    def release(self) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._bound.clear()
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
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def bind_output(self, name: str, array: Array) -> None:
        if self._is_new(name, array):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        for source, read in self._copies.values():
            read[...] = source
        self._session.run_with_iobinding(self._binding)

    def _is_new(self, name: str, array: np.ndarray) -> bool:
        assert array.flags.c_contiguous, f"{name} is not contiguous"
        before, self._bound[name] = self._bound.get(name), array
        # A binding knows addresses and shapes only; types are the engine's.
        return before is None or (before.ctypes.data, before.shape) != (array.ctypes.data, array.shape)
