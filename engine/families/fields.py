"""Typed access to the JSON files of a checkpoint: what is missing or of the wrong type is a CheckpointError."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.bounds import shown
from engine.errors import CheckpointError, EngineError
from engine.json_file import MOST_BYTES, Unreadable, read_bytes, read_json


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
            allowed = " or ".join(shown(choice) for choice in computed if choice is not None) or "its absence"
            self.refuse(f"{name} {shown(value)} is not supported, only {allowed}; choose another checkpoint")
        return value

    @contextmanager
    def named(self, **theirs: str) -> Iterator[None]:
        """Around what makes a configuration of these fields: our name of a field -> its name here, for messages."""
        try:
            yield
        except CheckpointError:
            raise
        except EngineError as error:
            sentence = re.sub(r"\w+", lambda word: theirs.get(word[0], word[0]), str(error))
            self.refuse(f"{sentence}; download the published config.json again")

    def refuse(self, sentence: str) -> NoReturn:
        """Raise the CheckpointError that names this place."""
        raise CheckpointError(f"{self.place}: {sentence}")

    def _get(self, name: str) -> Any:
        if not self.has(name):
            self.refuse(f"{name} is missing; download the published config.json again")
        return self.values[name]

    def _wrong_type(self, name: str, wanted: str) -> NoReturn:
        self.refuse(f"{name} is {shown(self.values[name])}, not {wanted}; download the published config.json again")


def read_fields(path: Path, most: int = MOST_BYTES) -> Fields:
    """Of a JSON file; none if there is no such file. Raises CheckpointError."""
    return Fields(read_object(path, most), str(path))


def read_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises CheckpointError."""
    try:
        value = read_json(path, most)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except Unreadable as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return value


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Any other file. Raises CheckpointError."""
    try:
        return read_bytes(path, most)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing; download it") from None
    except Unreadable as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from None


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
