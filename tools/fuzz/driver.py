"""Running cases of a kind, and what one came to."""

import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from engine.errors import EngineError
from tools.fuzz.kind import Case, Kind
from tools.fuzz.shrink import smaller

SECONDS = 20.0
"""For one case, whatever the machine does beside it; more is a hang."""
SHRINKING_RUNS = 400
ROOT = Path(__file__).parent.parent.parent


class Hang(BaseException):
    """A case that ran out of time; no handler of ordinary errors may take it for one."""


@dataclass(frozen=True)
class Failure:
    """A case that ended in something other than a good result or an EngineError.

    place: what was raised, and on which line of this repository; two cases with the same one have the same fault.
    """

    kind: str
    seed: int
    case: Case
    place: str
    report: str


def fuzz(kind: Kind, seeds: Iterable[int], seconds: float = SECONDS) -> Iterator[Failure | None]:
    """One outcome for each seed; None is as it should be."""
    for seed in seeds:
        case = kind.make(seed)
        failure = attempt(kind, case, seconds)
        yield None if failure is None else replace(failure, seed=seed)


def attempt(kind: Kind, case: Case, seconds: float = SECONDS) -> Failure | None:
    """Run one case."""
    try:
        with time_limit(seconds):
            kind.run(case)
    except EngineError as error:
        text = str(error)
        if "\n" in text or not text:
            return Failure(kind.NAME, -1, case, f"a message of {len(text.splitlines())} lines", repr(text))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Failure(kind.NAME, -1, case, _place(error), traceback.format_exc())
    return None


def shrink(kind: Kind, failure: Failure, seconds: float = SECONDS) -> Failure:
    """The smallest case with the same fault that cutting finds."""
    runs = 0
    found = True
    while found:
        found = False
        for case in smaller(failure.case):
            if runs == SHRINKING_RUNS:
                return failure
            runs += 1
            again = attempt(kind, case, seconds)
            if again is not None and again.place == failure.place:
                failure, found = replace(again, seed=failure.seed), True
                break
    return failure


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename
    ]
    where = ours[-1] if ours else frames[-1]
    # A hang is interrupted anywhere.
    return f"{type(error).__name__} in {where.filename}" + ("" if isinstance(error, Hang) else f":{where.lineno}")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises Hang in the main thread, which has to be the one that runs this."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
