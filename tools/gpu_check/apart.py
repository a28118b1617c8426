"""A check in a process of its own: whatever it does to the GPU, or to itself, ends with it."""

from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection

from tools.gpu_check.check import Check, Missing, Result, run_check

LONGEST_SECONDS = 3600.0
"""Until its next line."""
Find = Callable[[str], Check]
"""A check by its name."""


def run_apart(check: Check, find: Find, longest: float = LONGEST_SECONDS) -> Iterator[Result]:
    """Every line has a result, whatever becomes of the process. find: a function of a module, which it calls there."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(find, check.name, theirs), daemon=True)
    process.start()
    theirs.close()
    ended = ""
    for line in check.lines:
        if not ended and not ours.poll(longest):
            ended = f"no answer within {longest:.0f} s"
            process.kill()
        if not ended:
            try:
                yield Result(line, ours.recv())
                continue
            except EOFError:
                process.join()
                ended = f"its process ended with status {process.exitcode}"
        yield Result(line, Missing(ended, failed=True))
    process.join()


def _run(find: Find, name: str, connection: Connection) -> None:
    for result in run_check(find(name), None):
        connection.send(result.outcome)
