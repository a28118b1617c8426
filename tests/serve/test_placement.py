"""Which GPUs a served instance leaves to its process."""

import os

import pytest

from engine.errors import EngineError
from engine.gpu import VISIBLE
from engine.serve.triton.placement import GPUS, instances, take_gpus


def take(monkeypatch: pytest.MonkeyPatch, gpu: int, count: int, given: str = "", seen: str | None = None) -> str | None:
    """What the process sees after an instance of so many GPUs was placed on a GPU, and saw before."""
    monkeypatch.setenv(VISIBLE, "" if seen is None else seen)
    if seen is None:
        monkeypatch.delenv(VISIBLE)
    args = {"model_instance_kind": "GPU", "model_instance_device_id": str(gpu)}
    take_gpus(args, {GPUS: given}, count)
    return os.environ.get(VISIBLE)


@pytest.mark.parametrize(
    ("gpu", "count", "given", "seen", "expected"),
    [
        (3, 1, "", None, "3"),
        (1, 1, "", "4,GPU-8932f937,6", "GPU-8932f937"),
        (5, 2, "1,0,5,7", None, "5,7"),
        (1, 2, "1,0,5,7", None, "1,0"),
        (0, 2, "2,1,0,3", "9,8,7,6", "9,6"),
    ],
)
def test_an_instance_sees_its_gpus(
    monkeypatch: pytest.MonkeyPatch, gpu: int, count: int, given: str, seen: str | None, expected: str
) -> None:
    assert take(monkeypatch, gpu, count, given, seen) == expected


def test_the_server_is_told_of_the_first_of_each_instance() -> None:
    assert instances((4, 1, 7), 1) == [4, 1, 7]
    assert instances((2, 1, 0, 3), 2) == [2, 0]
    assert instances((), 2) == []


@pytest.mark.parametrize("seen", [None, "2,0"])
def test_an_instance_on_the_cpu_keeps_what_it_sees(monkeypatch: pytest.MonkeyPatch, seen: str | None) -> None:
    monkeypatch.setenv(VISIBLE, "" if seen is None else seen)
    if seen is None:
        monkeypatch.delenv(VISIBLE)
    take_gpus({"model_instance_kind": "CPU", "model_instance_device_id": "0"}, {}, 2)
    assert os.environ.get(VISIBLE) == seen


@pytest.mark.parametrize(
    ("gpu", "count", "given", "seen", "said"),
    [
        (2, 1, "", "4,5", "GPU 2 is not among the 2 of CUDA_VISIBLE_DEVICES=4,5"),
        (1, 2, "0,1,2,3", None, r"no instance of 2 GPUs starts with GPU 1 in the parameter gpus \('0,1,2,3'\)"),
        (2, 2, "0,1,2", None, "no instance of 2 GPUs starts with GPU 2"),
        (
            0,
            2,
            "",
            None,
            r"no instance of 2 GPUs starts with GPU 0 in the parameter gpus \(''\); export the repository with",
        ),
    ],
)
def test_gpus_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, gpu: int, count: int, given: str, seen: str | None, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        take(monkeypatch, gpu, count, given, seen)
