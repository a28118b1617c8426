"""A target is one object with one registration in each room; nobody else asks which one it is."""

import ast
from pathlib import Path

import pytest

from engine.build.toolchains import TOOLCHAINS
from engine.errors import EngineError
from engine.plugins.lowerings import LOWERINGS
from engine.runtime.loading import BACKENDS
from engine.target import Device, Precision, Target, targets_for

ROOT = Path(__file__).parent.parent


def test_every_target_is_registered_in_every_room() -> None:
    assert set(Target) == LOWERINGS.keys() == TOOLCHAINS.keys() == BACKENDS.keys()


def asks_which(source: str) -> list[int]:
    """Lines that compare something with a target, or look whether it is one of several."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "Target"
    ]


def test_nothing_depends_on_which_target_it_is() -> None:
    paths = sorted((ROOT / "engine").rglob("*.py"))
    assert {str(path): lines for path in paths if (lines := asks_which(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "if target is Target.TENSORRT: pass",
        "x = 1 if Target.TENSORRT == a.target else 2",
        "y = target not in (Target.ONNXRUNTIME, Target.TENSORRT)",
        "match target:\n    case Target.TENSORRT: pass",
    ],
)
def test_a_question_which_target_it_is_is_found(source: str) -> None:
    assert asks_which(source)


def test_a_target_is_its_name() -> None:
    """In manifests, on command lines and in sentences."""
    assert list(Target) == ["onnxruntime", "tensorrt_rtx", "tensorrt"]
    assert Target("tensorrt_rtx") is Target.TENSORRT_RTX
    assert f"{Target.TENSORRT}" == "tensorrt"
    with pytest.raises(ValueError, match="'other' is not a valid Target"):
        Target("other")


def test_what_is_declared_of_targets() -> None:
    assert [target.devices() for target in Target] == [(Device.CPU, Device.CUDA), (Device.CUDA,), (Device.CUDA,)]
    assert [target.plans_memory() for target in Target] == [False, True, True]
    assert Target.ONNXRUNTIME.precisions() == (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT4)
    planned = (Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT4, Precision.FP8)
    assert Target.TENSORRT.precisions() == Target.TENSORRT_RTX.precisions() == planned
    assert [target.activations(Precision.INT8) for target in Target] == ["float32", "bfloat16", "bfloat16"]
    assert {target.activations(Precision.FP16) for target in Target} == {"float16"}
    assert targets_for(Device.CPU) == (Target.ONNXRUNTIME,)
    assert targets_for(Device.CUDA) == (Target.TENSORRT_RTX, Target.TENSORRT)
    Target.ONNXRUNTIME.check(Precision.FP32)
    with pytest.raises(EngineError, match="target tensorrt is not built in precision fp32; choose bf16 or fp16 or"):
        Target.TENSORRT.check(Precision.FP32)
