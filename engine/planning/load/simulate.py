"""The scheduler that answers, run on a virtual clock: questions are courses, engines are how long their runs take.

Nothing of its policy is written again here. Only turns that are alike are taken many at once: the same questions step
in each, the same one has a run if any has, and nothing comes in between.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil, inf
from typing import Any, cast

from engine.errors import EngineError, Overloaded
from engine.planning.load.course import Course, Reading, Run
from engine.planning.load.times import Line, Lines, ModelTimes, PairTimes, slowest
from engine.runtime.lease import Lease
from engine.runtime.loop import OUTSIDE_THREADS
from engine.runtime.scheduler import Outcome, Scheduler, Task
from engine.runtime.work import Open, Outside, Step


@dataclass(frozen=True, slots=True)
class Arrival:
    """A question at some second. exits: whether the small model's answer is taken; known: whether both models have the
    features of its pictures."""

    at: float
    course: Course
    exits: bool = False
    known: bool = False


@dataclass(frozen=True)
class Answering:
    """How a process answers, as in `engine.config.ServingConfig`. kv_memory: bytes; None is as many as are wanted."""

    max_running: int
    max_waiting: int
    kv_memory: int | None = None


@dataclass
class Served:
    """What became of the questions that ended, in the order in which they did. first, last: seconds until the first
    piece of an answer, and until its end."""

    arrived: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    refused: int = 0
    idle: float = 0.0
    """Seconds in which there was nothing to do."""


class _Due:
    """Work outside: what of a `Future` the scheduler reads."""

    def __init__(self, world: "World", at: float) -> None:
        self._world, self._at = world, at

    def done(self) -> bool:
        return self._at <= self._world.now

    def result(self) -> None:
        return None

    def cancel(self) -> bool:
        return False


class _Language:
    """Slots of one model: how many there are, and of those that step, how many tokens are left and the keys so far."""

    def __init__(self, places: int) -> None:
        self.left: dict[int, int] = {}
        self.keys: dict[int, float] = {}
        self._places, self._open, self._opened = places, 0, 0

    def nbytes(self, size: int) -> int:
        return size

    def has_place(self) -> bool:
        return self._open < self._places

    def open(self, size: int) -> int:
        self._open += 1
        self._opened += 1
        return self._opened

    def close(self, slot: int) -> None:
        self._open -= 1


class _Model:
    def __init__(self, role: str, times: ModelTimes, places: int) -> None:
        self.role, self.times, self.language = role, times, _Language(places)


class _Unit:
    """A row of runs."""

    result = None

    def __init__(self, world: "World", model: _Model, lines: Lines, runs: Sequence[Run]) -> None:
        self.model, self._world, self._lines, self._runs, self._done = model, world, lines, runs, 0

    def advance(self) -> bool:
        for _ in range(self._world.leap if self is self._world.alone else 1):
            self._world.now += self.next(0)
            self._done += 1
        return self._done == len(self._runs)

    def left(self) -> int:
        return len(self._runs) - self._done

    def next(self, ahead: int) -> float:
        """Seconds of a run that is to come."""
        run = self._runs[self._done + ahead]
        return slowest(self._lines, run.rows, run.pairs)


_AT_ONCE, _FOUND = (Line(),), (Run(0.0),)
"""Of a picture whose features are there."""


class World:
    """One process that answers."""

    def __init__(self, times: PairTimes, answering: Answering) -> None:
        self.now, self.served = 0.0, Served()
        self._times = times
        self._scheduler = Scheduler(
            cast(Callable[[Callable[[], Any]], Future[Any]], self._outside),
            answering.max_running,
            answering.max_waiting,
            answering.kv_memory,
            clock=lambda: self.now,
            step=cast(Callable[[Sequence[Step]], Sequence[Any]], self._step),
        )
        self._most = answering.max_running
        self._small, self._large = (
            _Model(role, model, answering.max_running)
            for role, model in (("small", times.small), ("large", times.large))
        )
        self._threads = [0.0] * OUTSIDE_THREADS
        """When each is free."""
        self._due: list[float] = []
        self._units: set[_Unit] = set()
        """Of which questions wait for a run."""
        self._next: Arrival | None = None
        self.leap = 1
        """Turns that the next one stands for."""
        self.alone: _Unit | None = None
        """That has its runs in them."""
        self._opening = 0
        """Questions that wait for a slot."""

    def run(self, arrivals: Iterator[Arrival], ends: int) -> bool:
        """Until so many questions have ended -> whether more are to come."""
        served, scheduler = self.served, self._scheduler
        if self._next is None:
            self._next = next(arrivals, None)
        while len(served.last) + served.refused < ends:
            while self._next is not None and self._next.at <= self.now:
                self._ask(self._next)
                self._next = next(arrivals, None)
            is_due = False
            while self._due and self._due[0] <= self.now:
                is_due = bool(heappop(self._due))
            self.leap = 1 if is_due else self._alike()
            self.now += self._times.turn * self.leap
            if scheduler.iterate():
                continue
            word = self._word()
            if word == inf:
                return False
            served.idle += max(0.0, word - self.now)
            self.now = max(self.now, word)
        return True

    def _ask(self, arrival: Arrival) -> None:
        said: list[float] = []

        def end(outcome: Outcome) -> None:
            if isinstance(outcome, EngineError):
                raise outcome  # nothing that is simulated fails
            self.served.arrived.append(arrival.at)
            self.served.first.append((said[0] if said else self.now) - arrival.at)
            self.served.last.append(self.now - arrival.at)

        try:
            self._scheduler.submit(Task(self._talk(arrival, said), end))
        except Overloaded:
            self.served.refused += 1

    def _talk(self, arrival: Arrival, said: list[float]) -> Generator[Any, Any, Any]:
        """As `cascade.answer` asks for work. said: when text came."""
        course = arrival.course
        if course.small is not None:
            small = self._small
            yield Outside(lambda: small.times.outside)
            yield from self._look(small, course.small, arrival.known)
            with (yield from self._open(small, course.small)) as slot:
                yield from self._unit(small, small.times.extend, course.small.prompt)
                yield from self._speak(small, slot, course.small, course.small_tokens - 1)
                self.now += small.times.finish
                if course.agreement:
                    yield from self._unit(small, small.times.extend, course.agreement)
            if arrival.exits:
                return None
        large = self._large
        yield Outside(lambda: large.times.outside)
        yield from self._look(large, course.large, arrival.known)
        with (yield from self._open(large, course.large)) as slot:
            yield from self._unit(large, large.times.extend, course.large.prompt)
            said.append(self.now)
            yield from self._speak(large, slot, course.large, course.large_tokens - 1 - course.accepted)
        return None

    def _open(self, model: _Model, reading: Reading) -> Generator[Any, Any, Lease]:
        self._opening += 1
        lease: Lease = yield Open(cast(Any, model), cast(Any, reading.size))
        self._opening -= 1
        return lease

    def _look(self, model: _Model, reading: Reading, known: bool) -> Generator[Any, Any, None]:
        for picture in reading.pictures:
            yield from self._unit(model, *((_AT_ONCE, _FOUND) if known else (model.times.encode, picture)))

    def _unit(self, model: _Model, lines: Lines, runs: Sequence[Run]) -> Generator[Any, Any, None]:
        unit = _Unit(self, model, lines, runs)
        self._units.add(unit)
        yield unit
        self._units.remove(unit)
        self.now += self._times.resume

    def _speak(self, model: _Model, slot: int, reading: Reading, tokens: int) -> Generator[Any, Any, None]:
        language = model.language
        if tokens <= 0:
            return
        language.left[slot], language.keys[slot] = tokens, reading.context
        asked = Step(cast(Any, model), slot, 0, False, _unread)
        while language.left[slot]:
            yield asked
        del language.left[slot], language.keys[slot]

    def _step(self, works: Sequence[Step]) -> Sequence[None]:
        model, turns = cast(_Model, works[0].model), self.leap
        left, keys = model.language.left, model.language.keys
        pairs = 0.0
        for work in works:
            slot = work.slot
            left[slot] -= turns
            pairs += keys[slot]
            keys[slot] += turns
        count = len(works)
        # Keys grow by one each turn: their mean is that of the turn in the middle.
        pairs += count * (turns + 1) / 2
        self.now += turns * (slowest(model.times.step, count, pairs) + count * self._times.resume)
        return [None] * count

    def _outside(self, run: Callable[[], float]) -> _Due:
        thread = min(range(OUTSIDE_THREADS), key=self._threads.__getitem__)
        at = self._threads[thread] = max(self.now, self._threads[thread]) + run()
        heappush(self._due, at)
        return _Due(self, at)

    def _alike(self) -> int:
        """Turns from now on in which the same questions step, and the same one has its runs, if any has."""
        load = self._scheduler.load()
        self.alone = next(iter(self._units), None)
        if self._opening or len(self._units) > 1 or (load.waiting and load.running < self._most):
            return 1
        small, large = self._small.language.left, self._large.language.left
        # Whoever ends, ends in its part of the last turn, which nothing that comes behind it there may precede.
        ends = [min(small.values()) - bool(large or self.alone)] if small else []
        ends += [min(large.values()) - bool(self.alone)] if large else []
        ends += [self.alone.left()] if self.alone else []
        most = min(ends, default=1)
        if most <= 1:
            return 1
        word = self._word()
        return most if word == inf else self._until(word, most)

    def _word(self) -> float:
        """When something comes from outside next."""
        return min(self._next.at if self._next is not None else inf, self._due[0] if self._due else inf)

    def _until(self, word: float, most: int) -> int:
        """Turns that begin before then."""
        seconds = self._times.turn
        for model in (self._small, self._large):
            if count := len(model.language.left):
                pairs = sum(model.language.keys.values())
                seconds += slowest(model.times.step, count, pairs) + self._times.resume * count
        if self.alone is None:
            return min(most, max(1, ceil((word - self.now) / seconds))) if seconds else most
        turns, now = 0, self.now
        while turns < most and now < word:
            now += seconds + self.alone.next(turns)
            turns += 1
        return max(1, turns)


def _unread(logits: Any) -> Any:
    return logits
