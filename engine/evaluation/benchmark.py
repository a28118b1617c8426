"""What every benchmark provides: its questions, its metric, and how the questions' grades become its figures."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.evaluation.example import Example

TOTAL = "all"
"""The figure that stands for the whole benchmark."""

BETWEEN = " | "
WORD_OR_PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Mark:
    """The grade of one answer, 0..1, and what it counts with."""

    kind: str
    group: str
    grade: float


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_kind(marks: Sequence[Mark]) -> dict[str, list[Mark]]:
    kinds: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        kinds[mark.kind].append(mark)
    return dict(sorted(kinds.items()))


def mean_grade(marks: Sequence[Mark]) -> dict[str, float]:
    """In percent: of every kind if there are several, and of all questions."""
    kinds = by_kind(marks)
    figures = {kind: 100 * mean([mark.grade for mark in part]) for kind, part in kinds.items()}
    return (figures if len(kinds) > 1 else {}) | {TOTAL: 100 * mean([mark.grade for mark in marks])}


def mean_by_parts(marks: Sequence[Mark]) -> dict[str, float]:
    """In percent: of all with each part of a kind (`kind_of`), the first parts first, and of all questions."""
    split = [(mark.kind.split(BETWEEN), mark.grade) for mark in marks]
    parts = dict.fromkeys(kind[place] for place in range(max(len(kind) for kind, _ in split)) for kind, _ in split)
    figures = {part: 100 * mean([grade for kind, grade in split if part in kind]) for part in parts}
    return figures | {TOTAL: 100 * mean([grade for _, grade in split])}


def kind_of(*parts: str) -> str:
    """Of a question that is told apart in several ways, all of one benchmark's in the same number."""
    return BETWEEN.join(parts)


class Answered(Protocol):
    """Of a record, what a judge reads."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def prediction(self) -> str: ...


@dataclass(frozen=True)
class Submission:
    """A file for a judge elsewhere: how its name ends, and its content."""

    suffix: str
    write: Callable[[Sequence[Answered]], str]


@dataclass(frozen=True)
class Benchmark:
    """load: the directory of the published files -> questions. grade: answer and question -> 0..1; None if a judge
    elsewhere grades, who reads `submission`."""

    name: str
    metric: str
    files: str
    """What the directory must hold, as published."""
    load: Callable[[Path], list[Example]]
    grade: Callable[[str, Example], float] | None
    max_new_tokens: int
    summarise: Callable[[Sequence[Mark]], dict[str, float]] = mean_grade
    submission: Submission | None = None
