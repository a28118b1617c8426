"""Files of strangers, read within limits: every JSON file of a checkpoint or an engine directory comes through here.

What is inside is then read by type: published formats through `engine.families.fields`, what this project writes
through the classes that it is written from (`engine.engine_directory`).
"""

import json
import math
import re
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 23
VOCABULARY_BYTES = 1 << 26
"""Of files that hold a vocabulary."""
MOST_DEPTH = 32
MOST_CONTAINERS = 1 << 21
"""Objects and lists; a list for each merge makes half a million in the largest published vocabularies."""
MOST_DIGITS = 64
"""Of a whole number; `model_max_length` is published as 10^30."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Unreadable(Exception):
    """Why a file cannot be read, in words that fit into brackets."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """All of a file. Raises Unreadable, and FileNotFoundError or NotADirectoryError if there is none."""
    try:
        # A pipe or a device would never end.
        if path.exists() and not path.is_file():
            raise Unreadable("it is no ordinary file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    if len(data) > most:
        raise Unreadable(f"it has more than {most} bytes")
    return data


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The value of a JSON file. Raises like `read_bytes`."""
    return parse_json(read_bytes(path, most))


def parse_json(data: bytes) -> Any:
    """The value of what a stranger sent. Raises Unreadable."""
    try:
        text = data.decode("utf-8")
        if text.count("[") + text.count("{") > MOST_CONTAINERS:
            raise Unreadable(f"it has more than {MOST_CONTAINERS} objects and lists")
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    _check_depth(value)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unreadable("it has half a surrogate pair in a text") from None
    return value


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MOST_DIGITS]} is no finite number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        parts = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Unreadable:
    return Unreadable(f"it is nested more than {MOST_DEPTH} levels deep")
