"""A session of ONNX Runtime with what is bound to it; executors say where that lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from engine.errors import EngineError, ManifestError, Setting
from engine.runtime.arrays import Array
from engine.runtime.executor import SharedThreads, Threads
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


@dataclass(frozen=True)
class Place:
    """Where an array lies: device and its number, as ONNX Runtime counts them, and what it has to know beside them."""

    device: str
    number: int
    shape: tuple[int, ...]
    address: int


def in_host_memory(array: np.ndarray) -> Place:
    """Of an array in host memory."""
    return Place("cpu", 0, array.shape, array.ctypes.data)


class Session:
    """A graph that is loaded, and a persistent binding to which buffers are passed by address."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.inputs = {value.name: Declared(value.type, tuple(value.shape)) for value in session.get_inputs()}
        self.outputs = {value.name: Declared(value.type, tuple(value.shape)) for value in session.get_outputs()}
        declared = self.inputs | self.outputs
        self.dtypes: dict[str, Any] = {
            name: DTYPES[value.type] for name, value in declared.items() if value.type in DTYPES
        }
        self.binding = session.io_binding()
        self._session = session
        # The binding holds addresses only: what is bound must stay alive here.
        self._bound: dict[str, Array] = {}

    def release(self) -> None:
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self._bound.clear()

    def bind_input(self, name: str, array: Array, place: Place) -> None:
        """place: of the array, which is contiguous and of the input's type."""
        self._bound[name] = array
        self.binding.bind_input(name, place.device, place.number, self.dtypes[name], place.shape, place.address)

    def bind_output(self, name: str, array: Array, place: Place) -> None:
        """place: of the array, which is contiguous and of the output's type."""
        self._bound[name] = array
        self.binding.bind_output(name, place.device, place.number, self.dtypes[name], place.shape, place.address)

    def run(self) -> None:
        self._session.run_with_iobinding(self.binding)


def share_threads(threads: int) -> SharedThreads:
    """Make pools of threads and memory; once in a process."""
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)
    return SharedThreads(threads)


def open_session(path: Path, threads: Threads, providers: Mapping[str, dict[str, str]]) -> Session:
    """Load an ONNX file. providers: options of each, the one that is to compute first.

    Raises EngineError, also where a provider finds nothing to compute with.
    """
    options = onnxruntime.SessionOptions()
    if isinstance(threads, SharedThreads):
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
            session = onnxruntime.InferenceSession(str(path), options, providers=[*providers.items()])
    except Exception as error:
        raise ManifestError(f"{path} cannot be loaded ({error}); rebuild it with sgl build") from error
    # ONNX Runtime itself would go on with what is left.
    if missing := [provider for provider in providers if provider not in session.get_providers()]:
        raise EngineError(
            f"device {Device.CUDA} needs a GPU with NVIDIA's driver, CUDA and cuDNN, and {missing[0]} found none "
            "that it can use; install them or give ",
            Setting("device"),
            f" {Device.CPU}",
        )
    return Session(session)
