"""What configurations may hold, checked wherever one is made: the declared types, and ranges, each declared here once.

`num_layers: Layers` is an `int` to everyone else; `check_bounds` in `__post_init__` holds it to its range.
"""

import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import inf
from numbers import Integral, Real
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np

from engine.errors import EngineError, RequestError, Setting

SHOWN = 40
"""Characters of a value in a sentence."""
WHOLE = 1 << 64
"""Magnitude of the whole numbers that options may be; `repr` refuses very long ones."""
WORDS = {str: "a text", bool: "True or False", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Between:
    """Finite numbers from `low` to `high`; of an open range, `low` is not one of them."""

    low: float
    high: float
    is_open: bool = False

    def holds(self, value: Any) -> bool:
        is_low = value == self.low and self.is_open
        return self.low <= value <= self.high and -inf < value < inf and not is_low

    def __str__(self) -> str:
        if self.high == inf:
            return "not finite" if self.low == -inf else f"not a number of at least {self.low}"
        return f"outside ({self.low}, {self.high}]" if self.is_open else f"outside {self.low}..{self.high}"


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
MOST_PIXELS = 1 << 26
Pixels = Annotated[int, Between(1, MOST_PIXELS)]
"""Of a whole picture; published checkpoints ask for 12.8 million."""
PatchFrames = Annotated[int, Between(1, 8)]
"""Of a clip, in one patch."""
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
FrameCount = Annotated[int, Between(1, 1 << 20)]
"""Of a clip."""
FrameRate = Annotated[float, Between(0, 1000, is_open=True)]
Ratio = Annotated[float, Between(0, 1, is_open=True)]
Temperature = Annotated[float, Between(0, inf)]
Threshold = Annotated[float, Between(-inf, inf)]
Choices = Annotated[int, Between(0, (1 << 31) - 1)]
TopTokens = Annotated[int, Between(0, 20)]
"""As many as OpenAI's API gives."""
Seed = Annotated[int, Between(0, inf)]
Colour = Annotated[int, Between(0, 255)]
Fraction = Annotated[float, Between(1e-3, 1)]
Name = Annotated[str, Line(255)]


def check_bounds(config: Any) -> None:
    """Raises EngineError unless every field of a dataclass, and what is in it, is within its bound.

    Of a dictionary, keys and values that are text.
    """
    kind: Any = type(config)
    for name, bound in bounds(kind).items():
        value = getattr(config, name)
        if isinstance(value, dict):
            value = tuple(text for text in (*value, *value.values()) if isinstance(text, str))
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and not bound.holds(item):
                raise EngineError(Setting(name), f" {shown(item)} is {bound}")


def shown(value: Any) -> str:
    """A value in a sentence, shortened."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def settle_types(config: Any) -> None:
    """Give every field of a frozen dataclass the plain value of its declared type: an `int` for a whole number of
    NumPy, a tuple for a list, a member of an enumeration for its text.

    Raises RequestError for a value of another type.
    """
    kind: Any = type(config)
    for name, hint in _hints(kind).items():
        object.__setattr__(config, name, _plain((Setting(name),), getattr(config, name), hint))


def _plain(place: tuple[str, ...], value: Any, hint: Any) -> Any:
    """place: how a sentence about the value begins."""
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is tuple:
        return _parts(place, value, kinds)
    if value is None and type(None) in kinds:
        return None
    wanted = next(kind for kind in kinds if kind is not type(None))
    if wanted is not hint:
        return _plain(place, value, wanted)
    return _member(place, value, wanted) if issubclass(wanted, StrEnum) else _scalar(place, value, wanted)


def _parts(place: tuple[str, ...], value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    is_any_length = kinds[-1] is ...
    if not isinstance(value, tuple | list) or not (is_any_length or len(value) == len(kinds)):
        number = "" if is_any_length else f" of {len(kinds)}"
        raise RequestError(*place, f" cannot be {_kind(value)}; give a tuple{number}, each {WORDS[kinds[0]]}")
    return tuple(_plain(("a part of ", *place), part, kinds[0]) for part in value)


def _scalar(place: tuple[str, ...], value: Any, kind: Any) -> Any:
    if kind is str and isinstance(value, str):
        return str(value)
    is_bool = isinstance(value, bool | np.bool_)
    if kind is bool and is_bool:
        return bool(value)
    if kind is int and isinstance(value, Integral) and not is_bool:
        if abs(int(value)) >= WHOLE:
            raise RequestError(*place, " has more than 64 bits; give a smaller number")
        return int(value)
    if kind is float and isinstance(value, Real) and not is_bool:
        try:
            return float(value)
        except OverflowError:
            raise RequestError(*place, " is too large for a float; give a smaller number") from None
    raise RequestError(*place, f" cannot be {_kind(value)}; give {WORDS[kind]}")


def _member(place: tuple[str, ...], value: Any, kind: type[StrEnum]) -> StrEnum:
    members = ", ".join(kind)
    if not isinstance(value, str):
        raise RequestError(*place, f" cannot be {_kind(value)}; give one of {members}")
    try:
        return kind(value)
    except ValueError:
        raise RequestError(*place, f" {shown(value)} is unknown; give one of {members}") from None


def _kind(value: Any) -> str:
    kind = f"a {type(value).__name__}"
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list) else kind


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def bounds(kind: Any) -> dict[str, Bound]:
    """Of a dataclass, by field; not of fields that may say anything."""
    hints = get_type_hints(kind, include_extras=True)
    found = {name: _bound(hint) for name, hint in hints.items()}
    return {name: bound for name, bound in found.items() if bound is not None}


def _bound(hint: Any) -> Bound | None:
    """In a type such as `Layers`, `Tiles | None` or `tuple[Stretch, ...]`."""
    for part in (*getattr(hint, "__metadata__", ()), *map(_bound, get_args(hint))):
        if isinstance(part, Bound):
            return part
    return None
