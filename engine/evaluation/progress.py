"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.evaluation.benchmark import mean
from engine.evaluation.record import Record
from engine.evaluation.run import OnRecords

LINES = 10
"""In a whole run, where there is no terminal."""


@contextmanager
def run_progress(quiet: bool, label: str) -> Iterator[OnRecords]:
    """A function that shows, on stderr, how much is answered and the mean grade so far."""
    if quiet:
        yield lambda records, total: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[grade]}"), console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=None, grade="")
            yield lambda records, total: progress.update(
                task, total=total, completed=len(records), grade=grade_text(records)
            )
    else:
        shown = -1

        def on_progress(records: Sequence[Record], total: int) -> None:
            nonlocal shown
            if (step := LINES * len(records) // max(total, 1)) > shown:
                shown = step
                print(f"{label}: {len(records)} of {total} {grade_text(records)}", file=sys.stderr, flush=True)

        yield on_progress


def grade_text(records: Sequence[Record]) -> str:
    grades = [record.grade for record in records if record.grade is not None]
    return f"score {mean(grades):.1%}" if grades else ""
