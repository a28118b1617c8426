"""A GPU of torch, as far as waiting goes: its tensors compute on the CPU, and every look at their numbers counts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from engine.runtime.loop import Loop

DEVICE = torch.device("meta")
"""What its tensors say they are on: they have no numbers that Python could read by itself."""
aten = torch.ops.aten
LOOKS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
}
"""What a GPU cannot answer, or not even say the size of, before it has come so far."""


class DeviceTensor(torch.Tensor):
    """A tensor on `DEVICE`; `held` has the numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "DeviceTensor":
        tensor: DeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return self.cpu().numpy()

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} of a tensor whose device is not there")


class FakeDevice(TorchDispatchMode):
    """The device; it is there while the context lasts. waits: how often the host had to wait for it."""

    waits = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        to = torch.device(named["device"]) if named.get("device") is not None else None
        reads = [value for value in tree_flatten((args, named))[0] if isinstance(value, DeviceTensor)]
        stays = bool(reads) if to is None else to == DEVICE
        if to == DEVICE:
            named["device"] = "cpu"
        mutated = args[0] if str(function).split(".")[1].endswith("_") and args else None
        to_host = isinstance(mutated, torch.Tensor) and not isinstance(mutated, DeviceTensor)
        if reads and (not stays or to_host or function in LOOKS or _is_masked(function, args)):
            self.waits += 1
        # A number may come from anywhere, and so may an index.
        elsewhere = [value for value in tree_flatten((args, named))[0] if _is_on_host(value)]
        if reads and elsewhere and function not in (aten.copy_.default, aten.index.Tensor, aten.index_put_.default):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {function} got two")
        result = function(*tree_map(_open, args), **tree_map(_open, named))
        if mutated is not None:
            return mutated
        return tree_map(_close, result) if stays else result


def _is_on_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor) and value.ndim > 0


def _open(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def _close(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, torch.Tensor) else value


def _is_masked(function: Any, args: Sequence[Any]) -> bool:
    """Whether a condition chooses, so that what there is must be counted."""
    if function not in (aten.index.Tensor, aten.index_put_.default):
        return False
    return any(index is not None and index.dtype is torch.bool for index in args[1])


def answer_on(patch: pytest.MonkeyPatch) -> FakeDevice:
    """The device, for whatever answers questions from here on; dispatch modes are of one thread."""
    device, run = FakeDevice(), Loop._run

    def inside(loop: Loop) -> None:
        with device:
            run(loop)

    patch.setattr(Loop, "_run", inside)
    return device
