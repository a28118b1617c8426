"""The stand-in of a GPU counts what a GPU would make the host wait for, and nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.fake_device import DEVICE, FakeDevice

LOOKS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x[0] > 0),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(force=True),
    "copy to the host": lambda x: torch.empty(3).copy_(x),
    "condition as index": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
}
ORDINARY: dict[str, Callable[[torch.Tensor], object]] = {
    "product": lambda x: x * x,
    "choice": lambda x: torch.where(x > 0, x, torch.full_like(x, 0)).argmax(),
    "number as index": lambda x: x[1],
    "tensor as index": lambda x: torch.take(x, x.argmax()),
    "from the host": lambda x: x.copy_(torch.ones(3), non_blocking=True),
    "made there": lambda x: torch.arange(len(x), device=x.device) + x,
}


def waits(use: Callable[[torch.Tensor], object]) -> int:
    with FakeDevice() as device:
        use(torch.from_numpy(np.float32([1, -2, 3])).to(DEVICE))
        return device.waits


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_a_wait(name: str) -> None:
    assert waits(LOOKS[name]) == 1


@pytest.mark.parametrize("name", ORDINARY)
def test_work_is_none(name: str) -> None:
    assert waits(ORDINARY[name]) == 0


def test_numbers_are_those_of_the_cpu() -> None:
    with FakeDevice():
        x = torch.tensor([1.0, 2.0, 4.0]).to(DEVICE)
        x[1:].copy_(torch.tensor([5.0, 6.0]))
        assert x.device == DEVICE
        assert (x @ x).item() == 62


def test_what_is_elsewhere_is_refused() -> None:
    """As CUDA does; NumPy gets nothing that was not brought to the host."""
    with FakeDevice():
        x = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="to numpy"):
            np.concatenate([x])
