"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.evaluation.benchmark import mean
from engine.evaluation.record import Record
from engine.evaluation.run import OnProgress

LINES = 10
"""In a whole run, where there is no terminal."""


@contextmanager
def run_progress(quiet: bool, label: str) -> Iterator[OnProgress]:
    """A function that shows, on stderr, how much is answered and the mean score so far."""
    if quiet:
        yield lambda records, total: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[score]}"), console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=None, score="")
            yield lambda records, total: progress.update(
                task, total=total, completed=len(records), score=score_text(records)
            )
    else:
        shown = -1

        def on_progress(records: Sequence[Record], total: int) -> None:
            nonlocal shown
            if (step := LINES * len(records) // max(total, 1)) > shown:
                shown = step
                print(f"{label}: {len(records)} of {total} {score_text(records)}", file=sys.stderr, flush=True)

        yield on_progress


def score_text(records: Sequence[Record]) -> str:
    scores = [record.score for record in records if record.score is not None]
    return f"score {mean(scores):.1%}" if scores else ""
