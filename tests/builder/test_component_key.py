"""The key of a component: equal inputs, and only they, have equal keys."""

from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

import pytest

from engine.build.staging import component_key
from engine.config import GuidanceConfig
from engine.target import Precision


@dataclass(frozen=True)
class Twin:
    value: int = 1


@dataclass(frozen=True)
class OtherTwin:
    value: int = 1


class Colour(Enum):
    RED = 1


def test_component_key_tells_parts_apart() -> None:
    parts = [
        (),
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
        (1,),
        ("1",),
        (1.0,),
        (None,),
        (Twin(),),
        (OtherTwin(),),
        (Twin(2),),
        (GuidanceConfig(),),
        (GuidanceConfig(retention_ratio=0.3),),
        (Precision.INT8,),
        (Precision.FP32,),
        (PurePosixPath("a/b"),),
    ]
    assert len({component_key(*part) for part in parts}) == len(parts)


def test_component_key_is_stable() -> None:
    assert component_key({"b": 1, "a": (2, Colour.RED)}) == component_key({"a": [2, 1], "b": 1})
    # SHA-256 of ["small/vision",{"Twin":{"value":1}}]: keys outlive the process that made them.
    expected = "ba72d0b110bad78dadcf8f32c8df7f28bf07f521c03a0768b2ec6f50ff7a3acd"
    assert component_key("small/vision", Twin()) == expected
    with pytest.raises(TypeError, match="cannot hold object"):
        component_key(object())
