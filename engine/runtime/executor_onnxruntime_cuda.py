"""Executor on ONNX Runtime's CUDA provider: buffers are torch tensors on the GPU."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from engine.errors import EngineError, Setting
from engine.runtime.arrays import Array, is_host
from engine.runtime.executor_onnxruntime import CPU, OnnxRuntimeExecutor
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


class CudaExecutor(GpuBuffers, OnnxRuntimeExecutor):
    """A session that reads and writes tensors where they are; what is bound as a NumPy array is copied at every run.

    The host waits for the GPU at the end of a run.
    """

    def __init__(
        self, path: Path, threads: int | None, device: str = "cuda", providers: tuple[str, ...] = (CUDA, CPU)
    ) -> None:
        """device: of torch, where `providers` compute."""
        super().__init__(path, threads, providers)
        self._device = torch.device(device)
        self._host: dict[str, np.ndarray] = {}

    def release(self) -> None:
        super().release()
        self._host.clear()

    def bind_input(self, name: str, array: Array) -> None:
        if is_host(array):
            self._host[name] = array
        else:
            self._host.pop(name, None)
            self._bind(self._binding.bind_input, name, array)

    def bind_output(self, name: str, array: Array) -> None:
        self._bind(self._binding.bind_output, name, array)

    def run(self) -> None:
        for name, array in self._host.items():
            # For a GPU, ONNX Runtime copies an array when it is bound, and never again.
            self._bound.pop(name, None)
            super().bind_input(name, np.ascontiguousarray(array, self._dtypes[name]))
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # ONNX Runtime computes in a stream of its own
        self._binding.synchronize_inputs()  # which are copied when they are bound, but not necessarily at once
        super().run()
        self._binding.synchronize_outputs()

    def _bind(self, bind: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous(), f"{name} is not contiguous"
        assert tensor.dtype == self.torch_dtype(name), f"{name} is {tensor.dtype}"
        self._bound[name] = tensor  # holds the memory, whose address is all that a binding knows
        place = self._device.type, self._device.index or 0
        bind(name, *place, self._dtypes[name], tuple(tensor.shape), tensor.data_ptr())

    def torch_dtype(self, name: str) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self._dtypes[name])).dtype
