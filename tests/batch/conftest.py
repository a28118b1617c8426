"""Questions in a folder of its own, with a space in its name."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.batch.terms import Terms
from tests.batch.simulation import describe

Write = Callable[[Sequence[Any]], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a folder").mkdir()
    return tmp_path / "a folder"


@pytest.fixture
def write(folder: Path) -> Write:
    """Objects, or lines as they are -> the file of questions."""

    def to_file(lines: Sequence[Any]) -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = folder / "questions.jsonl"
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def terms(folder: Path) -> Terms:
    return Terms("pair", folder / "questions.jsonl", lambda answer, exit: describe(answer))
