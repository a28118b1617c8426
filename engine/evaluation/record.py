"""What is kept of one answered question, and the file of all of them: a line each, behind one with their settings."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cattrs import transform_error
from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from engine.config import Draft, ExitConfig, GuidanceConfig, SamplingConfig, VideoConfig
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
    speculate: int = SamplingConfig.speculate


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
    speculated_tokens: int = 0
    speculated_accepted_tokens: int = 0

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
        speculated_tokens=answer.speculated,
        speculated_accepted_tokens=answer.speculated_accepted,
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


def _read(path: Path, number: int, line: str, kind: type[Any]) -> Any:
    try:
        return FILE.structure(json.loads(line), kind)
    except (ValueError, BaseValidationError) as error:
        reason = transform_error(error)[0] if isinstance(error, BaseValidationError) else str(error)
        raise RequestError(
            f"{path} line {number} is not as this version writes it ({reason}); remove the file and run again"
        ) from None
