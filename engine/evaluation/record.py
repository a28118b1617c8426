"""What is kept of one answered question, and the file of all of them: a line each, safe to continue after a crash."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cattrs import transform_error
from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from engine.config import Draft, ExitConfig, GuidanceConfig, VideoConfig
from engine.engine_directory import CONVERTER
from engine.errors import RequestError
from engine.evaluation.benchmark import Benchmark, Mark
from engine.evaluation.example import Example
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.early_exit import ExitDecision


@dataclass(frozen=True)
class RunSettings:
    """What a run answers with; a file continues only under the same. engine: its components' fingerprints."""

    benchmark: str
    engine: dict[str, str]
    guidance: GuidanceConfig
    exit: ExitConfig
    max_new_tokens: int
    seed: int
    draft: Draft
    video: VideoConfig = field(default_factory=VideoConfig)


@dataclass(frozen=True)
class Record:
    """One question and what became of it.

    Grades, in the file `score` and `small_score`, are None where a judge elsewhere grades, or no answer was given.
    """

    id: str
    kind: str
    group: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    grade: float | None
    answered_by: AnsweredBy
    small_text: str | None
    small_grade: float | None
    decision: ExitDecision | None
    visual_tokens: int
    num_kept: int
    tiles: int
    tiles_skipped: int
    average_retention: float
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    seconds: dict[str, float]
    """Of the engines in each stage; those of a run for several questions are shared out among them."""

    def mark(self) -> Mark:
        assert self.grade is not None
        return Mark(self.kind, self.group, self.grade)

    def mark_of_small(self) -> Mark:
        assert self.small_grade is not None
        return Mark(self.kind, self.group, self.small_grade)


FILE = CONVERTER.copy()
"""As CONVERTER, with the names that grades have in files."""
NAMES = {"grade": override(rename="score"), "small_grade": override(rename="small_score")}
FILE.register_structure_hook(Record, make_dict_structure_fn(Record, FILE, _cattrs_forbid_extra_keys=True, **NAMES))  # type: ignore[arg-type]
FILE.register_unstructure_hook(Record, make_dict_unstructure_fn(Record, FILE, **NAMES))  # type: ignore[arg-type]


def make_record(benchmark: Benchmark, example: Example, answer: Answer) -> Record:
    grade, small = benchmark.grade, answer.small_text
    return Record(
        id=example.id,
        kind=example.kind,
        group=example.group,
        question=example.question,
        answers=example.answers,
        prediction=answer.text,
        grade=None if grade is None else grade(answer.text, example),
        answered_by=answer.answered_by,
        small_text=small,
        small_grade=None if grade is None or small is None else grade(small, example),
        decision=answer.decision,
        visual_tokens=answer.visual_tokens,
        num_kept=answer.num_kept(),
        tiles=answer.tiles,
        tiles_skipped=answer.tiles_skipped,
        average_retention=answer.average_retention(),
        generated_tokens=len(answer.token_ids),
        drafted_tokens=answer.drafted,
        accepted_tokens=answer.accepted,
        seconds=answer.engine_seconds,
    )


def read_run(path: Path) -> tuple[RunSettings, list[Record]]:
    """A file of records. Raises RequestError; a last line that a crash cut short is left out."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist; make it with sgl evaluate") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read ({error}); make it again with sgl evaluate") from None
    lines = content.split("\n")[:-1]
    if not lines:
        raise RequestError(f"{path} holds no run; remove it and run sgl evaluate again")
    return _read(path, 1, lines[0], RunSettings), [
        _read(path, number, line, Record) for number, line in enumerate(lines[1:], 2)
    ]


@contextmanager
def open_run(path: Path, settings: RunSettings) -> Iterator[tuple[list[Record], TextIO]]:
    """What an earlier run left, and the file open for more. Raises RequestError when that run was another one."""
    done: list[Record] = []
    if path.exists() and path.stat().st_size:
        before, done = read_run(path)
        if before != settings:
            different = [name for name, value in vars(settings).items() if getattr(before, name) != value]
            raise RequestError(
                f"{path} holds a run with another {' and '.join(different)}; remove it, or write to another file"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+" if path.exists() else "w+", encoding="utf-8") as file:
            if done:
                _drop_cut_line(path)
            else:
                file.truncate()
                append(file, [settings])
            file.seek(0, os.SEEK_END)
            yield done, file
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}); write to another file") from None


def append(file: TextIO, values: Sequence[RunSettings | Record]) -> None:
    """A line each."""
    for value in values:
        file.write(json.dumps(FILE.unstructure(value), ensure_ascii=False) + "\n")
    file.flush()


def _drop_cut_line(path: Path) -> None:
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def _read(path: Path, number: int, line: str, kind: type[Any]) -> Any:
    try:
        return FILE.structure(json.loads(line), kind)
    except (ValueError, BaseValidationError) as error:
        reason = transform_error(error)[0] if isinstance(error, BaseValidationError) else str(error)
        raise RequestError(
            f"{path} line {number} is not as this version writes it ({reason}); remove the file and run again"
        ) from None
