"""Executor on ONNX Runtime's CUDA provider: buffers are torch tensors on the GPU."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from engine.errors import EngineError, Setting
from engine.runtime.arrays import Array, is_host
from engine.runtime.backend import cuda
from engine.runtime.executor import Threads
from engine.runtime.executor_onnxruntime_session import CPU, Place, Session, in_host_memory, open_session
from engine.runtime.gpu_buffers import GpuBuffers
from engine.target import Device

CUDA = "CUDAExecutionProvider"


def require_cuda() -> None:
    """Raises EngineError unless ONNX Runtime and torch can both use this machine's GPU."""
    if not torch.cuda.is_available():
        raise EngineError(
            f"device {Device.CUDA} needs an NVIDIA GPU, and torch {torch.__version__} sees none; "
            "run it on a machine with one, or give ",
            Setting("device"),
            f" {Device.CPU}",
        )
    with redirect_stdout(sys.stderr):  # where it prints what it misses
        onnxruntime.preload_dlls()  # out of NVIDIA's wheels, where the loader does not look
    # Those that were compiled in, and those that registered themselves.
    known = {*onnxruntime.get_available_providers(), *(device.ep_name for device in onnxruntime.get_ep_devices())}
    if CUDA not in known:
        raise EngineError(
            f"device {Device.CUDA} needs ONNX Runtime's CUDA provider, and the installed onnxruntime "
            f"{onnxruntime.__version__} has none; pip uninstall onnxruntime, then pip install 'sgl-engine[cuda]'"
        )


class CudaExecutor(GpuBuffers):
    """A session that reads and writes tensors where they are; what is bound as a NumPy array is copied at every run.

    The host waits for the GPU at the end of a run.
    """

    def __init__(self, session: Session, device: str = "cuda") -> None:
        """device: of torch, where the session computes."""
        self._session, self._device = session, torch.device(device)
        self._host: dict[str, np.ndarray] = {}

    @classmethod
    def load(cls, path: Path, threads: Threads, gpu: int | None = None) -> "CudaExecutor":
        """gpu: its number; None is the first. Raises EngineError."""
        return cls(open_session(path, threads, {CUDA: {"device_id": str(gpu or 0)}, CPU: {}}), cuda(gpu))

    def release(self) -> None:
        self._session.release()
        self._host.clear()

    def bind_input(self, name: str, array: Array) -> None:
        if is_host(array):
            self._host[name] = array
        else:
            self._host.pop(name, None)
            self._session.bind_input(name, array, self._place(name, array))

    def bind_output(self, name: str, array: Array) -> None:
        self._session.bind_output(name, array, self._place(name, array))

    def run(self) -> None:
        for name, array in self._host.items():
            # For a GPU, ONNX Runtime copies an array when it is bound, and never again.
            converted = np.ascontiguousarray(array, self._session.dtypes[name])
            self._session.bind_input(name, converted, in_host_memory(converted))
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # ONNX Runtime computes in a stream of its own
        binding = self._session.binding
        binding.synchronize_inputs()  # which are copied when they are bound, but not necessarily at once
        self._session.run()
        binding.synchronize_outputs()

    def torch_dtype(self, name: str) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self._session.dtypes[name])).dtype

    def _place(self, name: str, tensor: torch.Tensor) -> Place:
        assert tensor.is_contiguous(), f"{name} is not contiguous"
        assert tensor.dtype == self.torch_dtype(name), f"{name} is {tensor.dtype}"
        return Place(self._device.type, self._device.index or 0, tuple(tensor.shape), tensor.data_ptr())
