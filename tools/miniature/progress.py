"""Progress of training: a bar for each stage on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tools.miniature.train import OnProgress

LINE_EVERY = 10.0
"""Seconds."""


@contextmanager
def training_progress() -> Iterator[OnProgress]:
    """A function that shows, on stderr, how much of a stage is done and its latest figures."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, fraction: float, figures: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0, figures="")
            progress.update(tasks[stage], completed=fraction, figures=figures)

        yield on_progress


def _lines() -> OnProgress:
    latest = 0.0

    def on_progress(stage: str, fraction: float, figures: str) -> None:
        nonlocal latest
        if fraction >= 1 or time.monotonic() - latest > LINE_EVERY:
            latest = time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} {stage} {fraction:.1%} {figures}", file=sys.stderr, flush=True)

    return on_progress
