"""Values of any type that a case of JSON can hold: an object says what it is `as`, and what `of`."""

import io
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, PictureConfig, SamplingConfig, VideoConfig
from engine.errors import EngineError
from engine.families import Turn
from engine.runtime.clips import ClipFrames
from engine.runtime.question import Question

NUMBERS = ("float16", "float32", "float64", "int8", "int64", "uint64", "bool_", "complex64")
"""Scalars of NumPy."""


@cache
def photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 24), (9, 99, 199)).save(file, "PNG")
    return file.getvalue()


def _hear(piece: str) -> None:
    assert isinstance(piece, str)


def _scalar(name: str, of: Any, case: dict[str, Any]) -> Any:
    return getattr(np, name)(of)


MAKE: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "bytes": lambda of, case: of.encode("latin-1", "replace"),
    "photo": lambda of, case: photo(),
    "memory": lambda of, case: memoryview(photo()),
    "path": lambda of, case: Path(of),
    "array": lambda of, case: np.zeros([int(side) for side in of], case.get("kind", "uint8")),
    "picture": lambda of, case: Image.new(case.get("mode", "RGB"), (int(of[0]), int(of[1])), 1),
    "file": lambda of, case: Image.open(io.BytesIO(photo())),
    "tuple": lambda of, case: tuple(of),
    "set": lambda of, case: {"a"},
    "turn": lambda of, case: Turn(*of),
    "fraction": lambda of, case: Fraction(int(of), 7),
    "power": lambda of, case: -(10 ** min(int(of), 9999)),
    "function": lambda of, case: len,
    "listener": lambda of, case: _hear,
    "object": lambda of, case: object(),
    "generator": lambda of, case: (part for part in of),
    "guidance": lambda of, case: GuidanceConfig(**of),
    "exit": lambda of, case: ExitConfig(**of),
    "sampling": lambda of, case: SamplingConfig(**of),
    "config": lambda of, case: PictureConfig(**of),
    "video": lambda of, case: VideoConfig(**of),
    "clip": lambda of, case: ClipFrames(**of),
    "question": lambda of, case: Question(**of),
    **{name: partial(_scalar, name) for name in NUMBERS},
}
FIELDS = {
    "guidance": GuidanceConfig,
    "exit": ExitConfig,
    "sampling": SamplingConfig,
    "config": PictureConfig,
    "video": VideoConfig,
    "clip": ClipFrames,
    "question": Question,
}
"""Those that take named values."""
NEUTRAL: dict[str, Any] = {"array": [1, 1, 3], "picture": [1, 1], "turn": ["a", "b"], "tuple": [], "generator": []}


def revive(case: Any) -> Any:
    """The value that a part of a case stands for; what shrinking left no sense in is something plain.

    Raises EngineError where making it does.
    """
    if isinstance(case, list):
        return [revive(part) for part in case]
    if not isinstance(case, dict):
        return case
    kind = case.get("as")
    if kind not in MAKE:
        return {name: revive(part) for name, part in case.items()}
    if kind in FIELDS:
        given = case.get("of")
        known = FIELDS[kind].__dataclass_fields__  # type: ignore[attr-defined]
        values = {name: revive(part) for name, part in given.items() if name in known} if given else {}
        return MAKE[kind]({"images": (), "text": "a"} | values if kind == "question" else values, case)
    default = NEUTRAL.get(kind, 0 if kind in (*NUMBERS, "fraction", "power") else "")
    try:
        return MAKE[kind](revive(case.get("of", default)), case)
    except (TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        if isinstance(error, EngineError):
            raise
        return MAKE[kind](default, {})
