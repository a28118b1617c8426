"""Buffers of torch on a GPU, for the engines that run there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from engine.build_flags import BuildFlag
from engine.errors import EngineError, Setting


class GpuBuffers:
    """Makes what an executor binds. Raises EngineError when the GPU has too little memory."""

    _device: torch.device

    def torch_dtype(self, name: str) -> torch.dtype:
        """Of an input or output."""
        raise NotImplementedError

    def zeros(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        with enough_memory(name):
            return torch.zeros(shape, dtype=self.torch_dtype(name), device=self._device)

    def put(self, name: str, array: np.ndarray) -> torch.Tensor:
        with enough_memory(name):
            return torch.from_numpy(array).to(self._device, self.torch_dtype(name))

    def reserve(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self.zeros(name, shape)

    def give_back(self, part: torch.Tensor) -> None:
        part.zero_()


def require_gpus(directory: Path, count: int) -> None:
    """Raises EngineError where there are fewer."""
    if (seen := torch.cuda.device_count()) < count:
        raise EngineError(
            f"{directory} was to run on {count} GPUs of this machine, and torch sees {seen}; use a machine with "
            "as many, or leave out ",
            Setting("small_apart"),
        )


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """What is allocated inside is for `name`. Raises EngineError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise EngineError(
            f"the GPU has too little memory free for {name}; close what else runs on it, ask fewer questions at once, "
            f"or rebuild with a smaller {BuildFlag.MAX_TOKENS} or {BuildFlag.MAX_BATCH}"
        ) from None
