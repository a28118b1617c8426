"""A check: lines that are known before anything is measured, and what measures them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Bound(StrEnum):
    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True)
class Target:
    bound: Bound
    value: float

    def met(self, value: float) -> bool:
        return value >= self.value if self.bound is Bound.AT_LEAST else value <= self.value


def at_least(value: float) -> Target:
    return Target(Bound.AT_LEAST, value)


def at_most(value: float) -> Target:
    return Target(Bound.AT_MOST, value)


@dataclass(frozen=True)
class Line:
    """unit: of its value, as in `GB/s`. target: None is information."""

    what: str
    unit: str
    target: Target | None = None


@dataclass(frozen=True)
class Measured:
    """The value of a line. note: what one should know to read it."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """A line without a value. failed: something broke; otherwise it could not run here."""

    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Result:
    line: Line
    outcome: Measured | Missing

    def passed(self) -> bool | None:
        """None: nothing was measured, or nothing was asked."""
        if isinstance(self.outcome, Missing):
            return False if self.outcome.failed else None
        return None if self.line.target is None else self.line.target.met(self.outcome.value)


@dataclass(frozen=True)
class Check:
    """measure: yields the outcome of each line, in their order."""

    name: str
    title: str
    needs_gpu: bool
    lines: tuple[Line, ...]
    measure: Callable[[], Iterable[Measured | Missing]]


def run_check(check: Check, no_gpu: str | None) -> Iterator[Result]:
    """Every line has a result, whatever happens. no_gpu: why there is none."""
    if check.needs_gpu and no_gpu:
        yield from (Result(line, Missing(no_gpu)) for line in check.lines)
        return
    lines = iter(check.lines)
    try:
        for outcome in check.measure():
            yield Result(next(lines), outcome)
    except Exception as error:  # one run on a borrowed machine: whatever breaks is written down, the rest goes on
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        yield from (Result(line, Missing(reason, failed=True)) for line in lines)
        return
    assert next(lines, None) is None, f"{check.name} measured fewer lines than it has"
