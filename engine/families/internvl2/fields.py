"""Typed access to a parsed JSON file like `config.json`: what is missing or of the wrong type is a CheckpointError."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import CheckpointError
from engine.families.json_file import read_object


@dataclass(frozen=True)
class Fields:
    """One JSON object of a configuration file; `place` names it in messages."""

    values: Mapping[str, Any]
    place: str

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def section(self, name: str) -> "Fields":
        value = self._get(name)
        if not isinstance(value, Mapping):
            self._wrong_type(name, "an object")
        return Fields(value, f"{self.place}, {name}")

    def integer(self, name: str) -> int:
        """A whole number, at least 1."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._wrong_type(name, "a positive integer")
        return value

    def side(self, name: str) -> int:
        """A positive integer, or a list of two that are equal: the side of a square."""
        value = self._get(name)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return Fields({name: value[0]}, self.place).integer(name)
        return self.integer(name)

    def number(self, name: str) -> float:
        """A finite number above 0."""
        value = self._get(name)
        if not _is_positive(value):
            self._wrong_type(name, "a positive number")
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of `length` finite numbers above 0."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != length or not all(map(_is_positive, value)):
            self._wrong_type(name, f"a list of {length} positive numbers")
        return tuple(map(float, value))

    def boolean(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            self._wrong_type(name, "true or false")
        return value

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            self._wrong_type(name, "a string")
        return value

    def only(self, name: str, *computed: Any) -> Any:
        """The field, which must be one of the values that the engine computes; None among them allows its absence."""
        value = self.values.get(name)
        if value not in computed:
            allowed = " or ".join(repr(choice) for choice in computed if choice is not None) or "its absence"
            self.refuse(f"{name} {_shown(value)} is not supported, only {allowed}; choose another checkpoint")
        return value

    def refuse(self, sentence: str) -> NoReturn:
        """Raise the CheckpointError that names this place."""
        raise CheckpointError(f"{self.place}: {sentence}")

    def _get(self, name: str) -> Any:
        if not self.has(name):
            self.refuse(f"{name} is missing; download the published config.json again")
        return self.values[name]

    def _wrong_type(self, name: str, wanted: str) -> NoReturn:
        self.refuse(f"{name} is {_shown(self.values[name])}, not {wanted}; download the published config.json again")


def read_fields(path: Path) -> Fields:
    """Of a JSON file; none if there is no such file. Raises CheckpointError."""
    return Fields(read_object(path), str(path))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _shown(value: Any) -> str:
    """A value in a sentence, shortened."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
