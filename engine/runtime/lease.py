"""A slot of a model, for as long as its question needs it."""

from collections.abc import Callable
from types import TracebackType

from engine.runtime.model import VisionLanguageModel
from engine.runtime.prompt import Need


class Lease:
    """A context manager that gives the slot's number. While it is spare, the slot is taken away as soon as another
    question would have to wait for one."""

    def __init__(
        self, model: VisionLanguageModel, need: Need, slot: int, size: int, close: Callable[["Lease"], None]
    ) -> None:
        """size: bytes."""
        self.model, self.need, self.slot, self.size, self._close = model, need, slot, size, close
        self.is_open, self.is_spare = True, False

    def offer(self) -> None:
        """Others may have it, until its question claims it."""
        self.is_spare = True

    def claim(self) -> bool:
        """Whether it is still there; from now on it is not spare."""
        self.is_spare = False
        return self.is_open

    def close(self) -> None:
        self._close(self)

    def __enter__(self) -> int:
        return self.slot

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
