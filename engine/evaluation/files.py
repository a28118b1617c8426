"""Reading the published files of a benchmark; what is missing or broken ends in one sentence."""

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import RequestError
from engine.evaluation.example import Example

LARGEST_FIELD = 1 << 28
"""Characters of a table's field: a picture in base64."""


def read_json(path: Path) -> Any:
    """Raises RequestError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON ({error}); mend it, or download it again") from None


def read_json_lines(path: Path) -> Iterator[Any]:
    """Raises RequestError."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as lines of JSON ({error}); mend it, or download it again") from None


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a tab-separated file with a head. Raises RequestError."""
    csv.field_size_limit(LARGEST_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t")
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read as a table ({error}); mend it, or download it again") from None


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table of columns. Raises RequestError."""
    if not path.is_file():
        raise missing(path)
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise RequestError(
            f"{path} is read with pyarrow, which is not installed; pip install 'sgl-engine[eval]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for part in file.iter_batches():
                yield from part.to_pylist()
    except (OSError, ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(f"{path} cannot be read as Parquet ({reason}); mend it, or download it again") from None


def write_text(path: Path, text: str) -> None:
    """Raises RequestError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}); write to another file") from None


def first_of(directory: Path, *names: str) -> Path:
    """The first of these files that is there, of patterns the first in order of name. Raises RequestError."""
    for name in names:
        if found := sorted(directory.glob(name)):
            return found[0]
    raise missing(directory / names[0])


def directory_of(data: Path, *names: str) -> Path:
    """The first of these that is there, else the first."""
    return next((place for name in names if (place := data / name).is_dir()), data / names[0])


def picture_file(path: Path) -> partial[Path]:
    return partial(Path, path)


def examples(path: Path, rows: Iterator[Example]) -> list[Example]:
    """All rows. Raises RequestError when one is not as published."""
    try:
        found = list(rows)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{path} is not in the published format ({reason}); mend it, or download it again") from None
    if not found:
        raise RequestError(f"{path} has no questions; mend it, or download it again")
    return found


def missing(path: Path) -> RequestError:
    return RequestError(f"{path} is missing; give the directory of the benchmark's published files")
