"""Progress of a run over a file: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from engine.batch.crew import OnProgress
from engine.batch.notices import Notices, tell
from engine.batch.tally import Tally

REFRESH_SECONDS = 0.2
LINE_SECONDS = 30.0
"""Between two lines, where there is no terminal."""


class Rate:
    """Questions per second since it was made. before: of them, those of earlier runs."""

    def __init__(self, before: int) -> None:
        self._before, self._start = before, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __call__(self, tally: Tally) -> float:
        return (tally.lines() - self._before) / max(self.seconds(), 1e-9)


@contextmanager
def batch_progress(quiet: bool, rate: Rate, label: str = "") -> Iterator[OnProgress]:
    """A function that shows, on stderr, how much is answered, how fast, and how."""
    if quiet:
        yield lambda tally, lines: None
        return
    notices = Notices()
    if not notices.isatty():
        yield _lines(rate, label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    said = TextColumn("{task.fields[said]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), said, TimeRemainingColumn())
    with Progress(*columns, console=Console(file=cast(IO[str], notices)), speed_estimate_period=120) as progress:
        task = progress.add_task(label, total=None, said="")
        shown = 0.0

        def show(tally: Tally, lines: int) -> None:
            nonlocal shown
            if (now := time.monotonic()) >= shown + REFRESH_SECONDS or tally.lines() == lines:
                shown = now
                progress.update(task, total=lines, completed=tally.lines(), said=describe(tally, rate(tally)))

        yield show


def _lines(rate: Rate, label: str) -> OnProgress:
    shown = time.monotonic()

    def show(tally: Tally, lines: int) -> None:
        nonlocal shown
        if time.monotonic() < shown + LINE_SECONDS:
            return
        shown, speed = time.monotonic(), rate(tally)
        left = f", {(lines - tally.lines()) / speed:.0f} s left" if speed else ""
        about = f"{label}: " if label else ""
        tell(f"{about}{tally.lines()} of {lines} lines, {describe(tally, speed)}{left}")

    return show


def describe(tally: Tally, speed: float) -> str:
    """In words."""
    parts = [f"{speed:.3g}/s"]
    if (exits := tally.exit_ratio()) is not None:
        parts.append(f"early exits {exits:.0%}")
    if (kept := tally.retention()) is not None:
        parts.append(f"tokens kept {kept:.0%}")
    if (grade := tally.mean_grade()) is not None:
        parts.append(f"score {grade:.1%}")
    if tally.errors:
        parts.append(f"errors {tally.errors}")
    return " · ".join(parts)
