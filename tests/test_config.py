"""What configurations hold is of the declared type, whatever they are given."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from engine.config import (
    LONGEST_STOP,
    MOST_STOPS,
    ExitConfig,
    ExitCriterion,
    GuidanceConfig,
    GuidanceSource,
    PictureConfig,
    SamplingConfig,
    ScoreRows,
    ServingConfig,
)
from engine.errors import RequestError


def test_values_of_other_libraries_become_plain_ones() -> None:
    guidance = GuidanceConfig(
        np.bool_(True),  # type: ignore[arg-type]
        "fastv",  # type: ignore[arg-type]
        np.float32(0.5),  # type: ignore[arg-type]
        np.int64(3),  # type: ignore[arg-type]
        score_rows="prompt",  # type: ignore[arg-type]
        score_layers=1,
    )
    assert guidance == GuidanceConfig(True, GuidanceSource.FASTV, 0.5, 3, score_rows=ScoreRows.PROMPT, score_layers=1.0)
    assert guidance.enabled is True and guidance.source is GuidanceSource.FASTV
    assert type(guidance.prune_layer) is int and type(guidance.retention_ratio) is type(guidance.score_layers) is float
    assert guidance.num_kept(7) == 3
    assert ExitConfig(criterion="q1").criterion is ExitCriterion.Q1  # type: ignore[arg-type]
    assert ExitConfig(exit_threshold=Fraction(1, 4)).exit_threshold == 0.25  # type: ignore[arg-type]
    assert SamplingConfig(stop=["a", np.str_("b")]).stop == ("a", "b")  # type: ignore[arg-type]
    assert PictureConfig(background=[np.uint8(1), 2, 3]).background == (1, 2, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (GuidanceConfig, "enabled", "no", "enabled cannot be a str; give True or False"),
        (GuidanceConfig, "source", "big", "source 'big' is unknown; give one of small, fastv, oracle, random, tome"),
        (GuidanceConfig, "source", None, "source cannot be a NoneType; give one of small"),
        (GuidanceConfig, "retention_ratio", "0.5", "retention_ratio cannot be a str; give a number"),
        (GuidanceConfig, "retention_ratio", None, "retention_ratio cannot be a NoneType; give a number"),
        (GuidanceConfig, "prune_layer", 1.0, "prune_layer cannot be a float; give a whole number"),
        (GuidanceConfig, "prune_layer", True, "prune_layer cannot be a bool; give a whole number"),
        (ExitConfig, "exit_threshold", 10**400, "exit_threshold is too large for a float; give a smaller number"),
        (ExitConfig, "exit_threshold", 1j, "exit_threshold cannot be a complex; give a number"),
        (ExitConfig, "normalise", "x" * 999, "normalise 'x{36}... is unknown; give one of product, mean"),
        (SamplingConfig, "max_new_tokens", 10**5000, "max_new_tokens has more than 64 bits; give a smaller number"),
        (SamplingConfig, "seed", 1 << 64, "seed has more than 64 bits"),
        (SamplingConfig, "top_k", np.zeros(1), "top_k cannot be a ndarray; give a whole number"),
        (SamplingConfig, "stop", "abc", "stop cannot be a str; give a tuple, each a text"),
        (SamplingConfig, "stop", (b"a",), "a part of stop cannot be a bytes; give a text"),
        (SamplingConfig, "stop", ("a",) * (MOST_STOPS + 1), "stop holds more than 64 texts"),
        (SamplingConfig, "stop", ("a" * (LONGEST_STOP + 1),), "or one of more than 1024 characters"),
        (ServingConfig, "max_running", "16", "max_running cannot be a str; give a whole number"),
        (PictureConfig, "auto_orient", 1, "auto_orient cannot be a int; give True or False"),
        (
            PictureConfig,
            "background",
            (1, 2),
            "background cannot be a tuple of 2; give a tuple of 3, each a whole number",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_values_of_wrong_types_are_refused(kind: Any, name: str, value: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        replace(kind(), **{name: value})
    if name != "source":
        with pytest.raises(RequestError, match=message):
            kind(**{name: value})


def test_the_largest_numbers_are_options() -> None:
    assert SamplingConfig(seed=(1 << 64) - 1, top_k=(1 << 31) - 1).seed == (1 << 64) - 1
    assert len(SamplingConfig(stop=("a" * LONGEST_STOP,) * MOST_STOPS).stop) == MOST_STOPS
