"""Ranges of what configurations may say: each is declared here once, and checked wherever a configuration is made.

`num_layers: Layers` is an `int` to everyone else; `check_bounds` in `__post_init__` holds it to its range.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from engine.errors import EngineError

SHOWN = 40
"""Characters of a value in a sentence."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`."""

    low: float
    high: float

    def holds(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"outside {self.low}..{self.high}"


def is_line(text: str) -> bool:
    """Whether it is Unicode without control characters and ends of lines."""
    # What is printable is one; the other way around, so are some kinds of blanks.
    return text.isprintable() or not any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text
    )


@dataclass(frozen=True)
class Line:
    """Text of one line, of at most `most` characters."""

    most: int

    def holds(self, value: Any) -> bool:
        return len(value) <= self.most and is_line(value)

    def __str__(self) -> str:
        return f"no line of at most {self.most} characters"


Bound = Between | Line

Layers = Annotated[int, Between(1, 1024)]
Layer = Annotated[int, Between(0, 1023)]
Heads = Annotated[int, Between(1, 1024)]
HeadDim = Annotated[int, Between(1, 1024)]
Width = Annotated[int, Between(1, 1 << 20)]
Vocabulary = Annotated[int, Between(1, 1 << 24)]
TokenId = Annotated[int, Between(0, (1 << 24) - 1)]
Positions = Annotated[int, Between(1, 1 << 30)]
Side = Annotated[int, Between(1, 1 << 13)]
"""Pixels."""
Pixels = Annotated[int, Between(1, 1 << 30)]
"""Of a whole picture."""
Tiles = Annotated[int, Between(1, 256)]
"""Of one picture. All grids of as many tiles are compared for every picture, and published checkpoints ask for 12."""
Tokens = Annotated[int, Between(1, 1 << 24)]
Batch = Annotated[int, Between(1, 1 << 20)]
Ranks = Annotated[int, Between(1, 1024)]
Bytes = Annotated[int, Between(0, 1 << 60)]
Epsilon = Annotated[float, Between(0, 1)]
Stretch = Annotated[float, Between(1e-6, 1e6)]
"""Of rotary positions."""
RopeBase = Annotated[float, Between(1, 1e15)]
Fraction = Annotated[float, Between(1e-3, 1)]
Name = Annotated[str, Line(255)]


def check_bounds(config: Any) -> None:
    """Raises EngineError unless every field of a dataclass, and what is in it, is within its bound.

    Of a dictionary, keys and values that are text.
    """
    kind: Any = type(config)
    for name, bound in _bounds(kind).items():
        value = getattr(config, name)
        if isinstance(value, dict):
            value = tuple(text for text in (*value, *value.values()) if isinstance(text, str))
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and not bound.holds(item):
                raise EngineError(f"{name} {shown(item)} is {bound}")


def shown(value: Any) -> str:
    """A value in a sentence, shortened."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


@cache
def _bounds(kind: Any) -> dict[str, Bound]:
    hints = get_type_hints(kind, include_extras=True)
    found = {name: _bound(hint) for name, hint in hints.items()}
    return {name: bound for name, bound in found.items() if bound is not None}


def _bound(hint: Any) -> Bound | None:
    """In a type such as `Layers`, `Tiles | None` or `tuple[Stretch, ...]`."""
    for part in (*getattr(hint, "__metadata__", ()), *map(_bound, get_args(hint))):
        if isinstance(part, Bound):
            return part
    return None
