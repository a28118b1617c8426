"""Progress of a build: bars on a terminal, a line per finished part elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnProgress = Callable[[str, float], None]


@contextmanager
def build_progress(quiet: bool) -> Iterator[OnProgress]:
    """A function that shows, on stderr, how much of each part is done."""
    if quiet:
        yield lambda name, fraction: None
    elif sys.stderr.isatty():
        with _bars() as on_progress:
            yield on_progress
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        # A build learns its parts on the way: the total shows time, not a share of an unknown whole.
        total = progress.add_task("total", total=None)

        def on_progress(name: str, fraction: float) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=1.0)
            progress.update(tasks[name], completed=fraction)

        yield on_progress
        progress.update(total, total=len(tasks), completed=len(tasks))


def _lines() -> OnProgress:
    finished: set[str] = set()

    def on_progress(name: str, fraction: float) -> None:
        if fraction >= 1 and name not in finished:
            finished.add(name)
            print(f"{name} done", file=sys.stderr, flush=True)

    return on_progress
