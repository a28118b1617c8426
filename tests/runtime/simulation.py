"""A world without engines to run a scheduler in: models, pictures and time are made up, what happens is written down.

A question is a script. What it yields, and what is done with it, is checked where it happens; `World.run` lets
everything end as the loop's thread would: nobody looks again unless there was something to do, or word came.
"""

from collections.abc import Generator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.errors import EngineError, Overloaded, QuestionCancelled
from engine.runtime.lease import Lease
from engine.runtime.scheduler import PATIENCE, Scheduler, Task
from engine.runtime.work import Open, Outside, Step

ROLES = ("small", "large")


class Panic(BaseException):
    """As a library in another language raises it."""


@dataclass(frozen=True)
class Phase:
    """What a question does with one model: outside for so many ticks (None: until it ends), runs of one unit, a slot of
    so many bytes, runs of another unit, steps; a step whose reading fails, if any. spare: its slot is kept, and stepped
    in once more at the end, if nobody needed it in between."""

    role: str = "small"
    outside: int | None = 0
    encode: int = 0
    size: int = 1
    prefill: int = 1
    steps: int = 1
    bad_step: int | None = None
    spare: bool = False


@dataclass(frozen=True)
class Script:
    """raises: at the end, instead of an answer. stubborn: goes on working when it is told to end."""

    phases: tuple[Phase, ...] = (Phase(),)
    arrives: int = 0
    cancelled: int | None = None
    seconds: float | None = None
    raises: BaseException | None = None
    stubborn: bool = False


@dataclass(eq=False)
class Asked:
    """A script that is being run. doomed: something was done to it that must end it without an answer."""

    number: int
    script: Script
    outcomes: list[Any] = field(default_factory=list)
    doomed: bool = False
    task: Task | None = None
    unit: "Unit | None" = None
    """That it waits for, passed over so often since its last run."""
    passed_over: int = 0
    stepping: bool = False
    ended: int | None = None
    """Tick."""

    def told(self, outcome: Any, tick: int) -> None:
        self.outcomes.append(outcome)
        self.unit, self.stepping, self.ended = None, False, tick


class Language:
    """Slots by number, each with its owner's bytes. Every call is checked, and may be made to fail."""

    def __init__(self, world: "World", role: str, places: int) -> None:
        self.world, self.role, self.places = world, role, places
        self.slots: dict[int, int] = {}
        self.owners: dict[int, Asked] = {}
        self._opened = 0

    def nbytes(self, need: tuple[Asked, int]) -> int:
        self.world.call([need[0]])
        return need[1]

    def has_place(self) -> bool:
        return len(self.slots) < self.places

    def open(self, need: tuple[Asked, int]) -> int:
        assert self.has_place()
        self.world.call([need[0]])
        self._opened += 1
        self.slots[self._opened], self.owners[self._opened] = need[1], need[0]
        return self._opened

    def step(self, slots: list[int], tokens: np.ndarray, scored: np.ndarray) -> np.ndarray:
        assert len(set(slots)) == len(slots) == len(tokens) == len(scored)
        owners = [self.owners[slot] for slot in slots]
        self.world.note("step", self.role, owners)
        self.world.call(owners)
        return np.stack([slots, tokens], axis=1)

    def close(self, slot: int) -> None:
        del self.slots[slot]
        self.world.call([])


class Unit:
    def __init__(self, model: Any, asked: Asked, runs: int, slot: int | None = None) -> None:
        self.model, self.asked, self.left, self.slot = model, asked, runs, slot
        self.result = runs

    def advance(self) -> bool:
        assert self.left > 0
        if self.slot is not None:
            assert self.model.language.owners[self.slot] is self.asked
        self.asked.unit = self
        self.asked.stepping = False
        self.model.language.world.turn(self.asked)
        self.model.language.world.call([self.asked])
        self.left -= 1
        return not self.left


class Kept:
    """What is kept of keys and values for later questions: a byte more after every run, as far as others allow it."""

    def __init__(self) -> None:
        self.size, self.allowed = 0, 1000

    def nbytes(self) -> int:
        return self.size

    def allow(self, nbytes: int) -> None:
        assert nbytes >= 0
        self.allowed = nbytes
        self.size = min(self.size, nbytes)

    def grow(self) -> None:
        self.size = min(self.size + 1, self.allowed)


class World:
    def __init__(
        self,
        max_running: int = 3,
        max_waiting: int = 100,
        kv_memory: int | None = None,
        places: int = 100,
        fails: dict[int, Exception] | None = None,
    ) -> None:
        """fails: what the engines' calls of these numbers raise."""
        self.now, self.tick, self.calls, self.engine_seconds = 0.0, 0, 0, 0.0
        self.fails = fails or {}
        self.models = {role: SimpleNamespace(role=role, language=Language(self, role, places)) for role in ROLES}
        self.asked: list[Asked] = []
        self.outside: list[tuple[int | None, Future[Any], Any]] = []
        self.events: list[tuple[str, str, list[Asked]]] = []
        self.limits = max_running, max_waiting, kv_memory
        self.kept = Kept()
        self.scheduler = Scheduler(self.start, max_running, max_waiting, kv_memory, lambda: self.now, spare=self.kept)

    # What the scheduler is given.

    def start(self, run: Any) -> Future[Any]:
        future: Future[Any] = Future()
        ticks = run()
        self.outside.append((None if ticks is None else self.tick + ticks, future, ticks))
        return future

    def call(self, owners: list[Asked]) -> None:
        """A call of an engine for these questions."""
        self.calls += 1
        self.now += 0.125
        if self.calls in self.fails:
            if len(owners) == 1:
                owners[0].doomed = True
            raise self.fails[self.calls]
        self.engine_seconds += 0.125 if owners else 0.0
        self.kept.grow()

    def note(self, kind: str, role: str, owners: list[Asked]) -> None:
        self.events.append((kind, role, owners))

    def turn(self, chosen: Asked) -> None:
        """Whether a unit's run was given to whom it belongs."""
        self.note("run", chosen.unit.model.role, [chosen])  # type: ignore[union-attr]
        waiting = [asked for asked in self.asked if asked.unit is not None]
        impatient = [asked for asked in waiting if asked.passed_over >= PATIENCE]
        if impatient:
            assert chosen is impatient[0]
        else:
            role = chosen.unit.model.role  # type: ignore[union-attr]
            assert chosen is next(asked for asked in waiting if asked.unit.model.role == role)  # type: ignore[union-attr]
            assert role == "small" or all(asked.unit.model.role == "large" for asked in waiting)  # type: ignore[union-attr]
        for asked in waiting:
            asked.passed_over += 1
        chosen.passed_over = 0

    def talk(self, asked: Asked) -> Generator[Any, Any, str]:
        spared: list[Lease] = []
        for phase in asked.script.phases:
            model = self.models[phase.role]
            try:
                assert (yield Outside(lambda phase=phase: phase.outside)) == phase.outside  # type: ignore[misc]
            except GeneratorExit:
                if asked.script.stubborn:
                    yield Outside(lambda: 0)
                raise
            if phase.encode:
                yield from self.run_unit(Unit(model, asked, phase.encode))
            if phase.size > (self.limits[2] or phase.size):
                asked.doomed = True
            lease = yield Open(model, (asked, phase.size))  # type: ignore[arg-type]
            with ExitStack() as held:
                slot = held.enter_context(lease)
                yield from self.run_unit(Unit(model, asked, phase.prefill, slot))
                for token in range(phase.steps):
                    yield from self.step(model, asked, slot, token, token == phase.bad_step)
                if phase.spare:
                    held.pop_all()
                    lease.offer()
                    spared.append(lease)
        for lease in spared:
            if lease.claim():
                yield from self.step(lease.model, asked, lease.slot, 0, False)
                lease.close()
        if asked.script.raises is not None:
            asked.doomed = True
            raise asked.script.raises
        return f"answer {asked.number}"

    def run_unit(self, unit: Unit) -> Generator[Any, Any, None]:
        unit.asked.unit = unit
        assert (yield unit) == unit.result
        unit.asked.unit = None

    def step(self, model: Any, asked: Asked, slot: int, token: int, fails: bool) -> Generator[Any, Any, None]:
        def read(row: np.ndarray) -> np.ndarray:
            if fails:
                asked.doomed = True
                raise ValueError("no number")
            return row

        asked.stepping = True
        assert (yield Step(model, slot, token, False, read)).tolist() == [slot, token]
        asked.stepping = False

    # What happens to it.

    def ask(self, script: Script) -> Asked:
        asked = Asked(len(self.asked), script)
        self.asked.append(asked)
        deadline = None if script.seconds is None else self.now + script.seconds
        asked.task = Task(self.talk(asked), lambda outcome: asked.told(outcome, self.tick), deadline)
        load, (max_running, max_waiting, _) = self.scheduler.load(), self.limits
        is_full = load.running >= max_running and load.waiting >= max_waiting
        try:
            self.scheduler.submit(asked.task)
            assert not is_full
        except Overloaded as error:
            assert is_full
            asked.told(error, self.tick)
        return asked

    def cancel(self, asked: Asked) -> None:
        if asked.ended is None:
            asked.doomed = True
        self.scheduler.cancel(asked.task, QuestionCancelled("nobody waits"))  # type: ignore[arg-type]

    def iterate(self) -> bool:
        for asked in self.asked:
            due = asked.task.deadline  # type: ignore[union-attr]
            if asked.ended is None and due is not None and due <= self.now:
                asked.doomed = True
        stepping = [asked for asked in self.asked if asked.stepping]
        before = len(self.events)
        progress = self.scheduler.iterate()
        happened = self.events[before:]
        assert sum(kind == "run" for kind, *_ in happened) <= 1
        stepped = {asked for kind, _, owners in happened if kind == "step" for asked in owners}
        assert all(asked in stepped or asked.ended is not None for asked in stepping)
        self.check()
        if not progress:
            self.check_nobody_waits_for_what_is_spare()
        return progress

    def check_nobody_waits_for_what_is_spare(self) -> None:
        """The first that waits for a slot would not have one, if all that is spare were taken away."""
        tasks = [asked.task for asked in self.asked if asked.task is not None and asked.ended is None]
        waiting = next((task.work for task in tasks if isinstance(task.work, Open)), None)
        if waiting is None:
            return
        spare = [lease for task in tasks for lease in task.leases if lease.is_spare]
        language, size = waiting.model.language, waiting.need[1]  # type: ignore[index]
        places = len(language.slots) - sum(lease.model is waiting.model for lease in spare)
        used = self.scheduler.load().kv_memory_used - sum(lease.size for lease in spare)
        kv_memory = self.limits[2]
        assert places >= language.places or (kv_memory is not None and used + size > kv_memory)  # type: ignore[attr-defined]

    def check(self) -> None:
        load, (max_running, _, kv_memory) = self.scheduler.load(), self.limits
        languages = [model.language for model in self.models.values()]
        assert load.kv_memory_used == sum(sum(language.slots.values()) for language in languages)
        assert kv_memory is None or load.kv_memory_used <= kv_memory
        assert kv_memory is None or load.kv_memory_used + load.kv_memory_kept <= kv_memory
        assert load.running <= max_running
        for asked in self.asked:
            assert len(asked.outcomes) <= 1
            held = [slot for language in languages for slot in language.slots if language.owners[slot] is asked]
            assert not held or asked.ended is None
            assert len(asked.task.leases) == len(held)  # type: ignore[union-attr]

    def resolve(self) -> bool:
        """Work outside whose time has come -> whether there was any."""
        due = [entry for entry in self.outside if entry[0] is not None and entry[0] <= self.tick]
        self.outside = [entry for entry in self.outside if entry not in due and not entry[1].cancelled()]
        for _, future, result in due:
            if future.set_running_or_notify_cancel():
                future.set_result(result)
        return bool(due)

    def run(self, scripts: list[Script], most: int = 10_000) -> None:
        """Until nothing is left to happen; everything must have ended then."""
        scripts, busy = sorted(scripts, key=lambda script: script.arrives), False
        for self.tick in range(most):
            word = self.resolve()
            while scripts and scripts[0].arrives <= self.tick:
                self.ask(scripts.pop(0))
                word = True
            for asked in self.asked:
                if asked.script.cancelled is not None and asked.script.cancelled == self.tick - asked.script.arrives:
                    self.cancel(asked)
                    word = True
            self.now += 0.125
            due = self.scheduler.next_deadline()
            if word or busy or (due is not None and due <= self.now):
                busy = self.iterate()
            is_over = not busy and not scripts and all(when is None for when, *_ in self.outside)
            cancels = [asked.script.arrives + (asked.script.cancelled or 0) for asked in self.asked]
            if is_over and self.tick >= max(cancels, default=0) and self.scheduler.next_deadline() is None:
                break
        assert self.scheduler.is_idle()
        load = self.scheduler.load()
        assert (load.running, load.waiting, load.kv_memory_used) == (0, 0, 0)
        for asked in self.asked:
            assert len(asked.outcomes) == 1, asked
            (outcome,) = asked.outcomes
            assert isinstance(outcome, EngineError if asked.doomed or isinstance(outcome, Overloaded) else str), asked
