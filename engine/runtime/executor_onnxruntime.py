"""Executor on ONNX Runtime's CPU provider."""

from pathlib import Path

import numpy as np
import onnxruntime

from engine.errors import ManifestError


class OnnxRuntimeExecutor:
    """A session and its persistent binding; buffers are passed by address."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Patterns are kept per input shape, and a server meets thousands of them.
        options.enable_mem_pattern = False
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ManifestError(f"{path} cannot be loaded ({error}); rebuild it with build_engines.py") from error
        self._binding = self._session.io_binding()
        # The binding holds addresses only: what is bound must stay alive here.
        self._bound: dict[str, np.ndarray] = {}

    def bind_input(self, name: str, array: np.ndarray) -> None:
        if self._is_new(name, array):
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def bind_output(self, name: str, array: np.ndarray) -> None:
        if self._is_new(name, array):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _is_new(self, name: str, array: np.ndarray) -> bool:
        assert array.flags.c_contiguous, f"{name} is not contiguous"
        if self._bound.get(name) is array:
            return False
        self._bound[name] = array
        return True
