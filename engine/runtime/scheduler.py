"""Which question goes on next. Many are answered at once: what each yields to be done becomes calls of both models.

Pure policy: it knows no engine and no thread. In each iteration every model steps once, all questions together that
wait for a step of it; then one run of the work that takes several (a part of a prompt, tiles of a picture) is done. A
question with a long prompt or a long answer so delays a running one by at most one such run for each token.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from engine.errors import EngineError, ModelFailed, Overloaded, QuestionTimedOut, RequestError, Setting
from engine.runtime.answer import Answer
from engine.runtime.lease import Lease
from engine.runtime.model import VisionLanguageModel
from engine.runtime.question import Meter
from engine.runtime.work import Open, Outside, Step, Work, step

LOG = logging.getLogger(__name__)
ROLES = ("small", "large")
"""In the order of their turns: what the small model says may spare the large one."""
NO_RUNS = (Outside, Open, Step, type(None))
"""Work of other kinds than that which takes several runs."""
PATIENCE = 8
"""Runs for others that pass a question over before it comes first, whatever its model."""
GIB = 2**30
TIMED_OUT = "the question was not answered in its time; give it more"

Outcome = Answer | EngineError
"""What became of a question."""


def answered(outcome: Outcome) -> Answer:
    """Raises the EngineError that it is instead."""
    if isinstance(outcome, EngineError):
        raise outcome
    return outcome


@dataclass(eq=False)
class Task:
    """A question that is being answered, or is to be.

    conversation: yields work and is sent results. on_done: gets the outcome, once. deadline: on the scheduler's clock.
    meter: counts the engines' seconds.
    """

    conversation: Generator[Work, Any, Answer]
    on_done: Callable[[Outcome], None]
    deadline: float | None = None
    meter: Meter = field(default_factory=Meter)
    work: Work | None = None
    passed_over: int = 0
    leases: list[Lease] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """How busy a scheduler is. kv_memory: bytes of keys and values that running questions may fill, in all, and that
    are kept for later questions until a running one needs them."""

    running: int
    waiting: int
    kv_memory_used: int
    kv_memory: int | None
    kv_memory_kept: int = 0


class Spare(Protocol):
    """Memory that nobody needs, and that is given up for whoever does."""

    def nbytes(self) -> int: ...

    def allow(self, nbytes: int) -> None:
        """Keep no more from now on."""


class Scheduler:
    """Answers questions that others submit; `iterate` is called again and again by one thread."""

    def __init__(
        self,
        start: Callable[[Callable[[], Any]], Future[Any]],
        max_running: int,
        max_waiting: int,
        kv_memory: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        step: Callable[[Sequence[Step]], Sequence[Any]] = step,
        spare: Spare | None = None,
    ) -> None:
        """start: runs work outside. max_running, max_waiting: questions; more are refused. kv_memory: most bytes of
        keys and values, None is as many as there are. step: runs the steps of one model together. spare: what is kept
        of keys and values for later questions."""
        self._start, self._clock, self._run_steps = start, clock, step
        self._max_running, self._max_waiting, self._kv_memory = max_running, max_waiting, kv_memory
        self._waiting: deque[Task] = deque()
        self._running: dict[Task, None] = {}
        """In the order of their arrival."""
        self._kv_used, self._spare = 0, spare
        self._use(0)

    def load(self) -> Load:
        kept = 0 if self._spare is None else self._spare.nbytes()
        return Load(len(self._running), len(self._waiting), self._kv_used, self._kv_memory, kept)

    def submit(self, task: Task) -> None:
        """Raises Overloaded."""
        if len(self._waiting) >= self._max_waiting and len(self._running) >= self._max_running:
            raise Overloaded(
                f"{len(self._running)} questions are being answered and {len(self._waiting)} wait already; "
                "ask again later, or of another server"
            )
        self._waiting.append(task)
        self._admit()

    def cancel(self, task: Task, error: EngineError) -> None:
        """End a question that has not ended yet, whatever it would make of the error."""
        if task in self._waiting:
            self._waiting.remove(task)
        elif task not in self._running:
            return
        self._finish(task, error)

    def cancel_all(self, error: EngineError) -> None:
        for task in [*self._waiting, *self._running]:
            self.cancel(task, error)

    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def next_deadline(self) -> float | None:
        """On the clock; None if no question has one."""
        return min((task.deadline for task in self._tasks() if task.deadline is not None), default=None)

    def iterate(self) -> bool:
        """One turn of everybody -> whether there was anything to do; if not, all that runs waits for work outside."""
        self._expire()
        self._admit()
        progress = self._take_results()
        progress |= self._open_slots()
        for role in ROLES:
            progress |= self._step([task for task in self._running if _is_step(task.work, role)])
        return self._run_one() or progress

    def _tasks(self) -> list[Task]:
        return [*self._running, *self._waiting]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            task = self._waiting.popleft()
            self._running[task] = None
            self._send(task, None)

    def _expire(self) -> None:
        now = self._clock()
        for task in self._tasks():
            if task.deadline is not None and task.deadline <= now:
                self.cancel(task, QuestionTimedOut(TIMED_OUT))

    def _take_results(self) -> bool:
        """Of work outside."""
        done = [task for task in self._running if isinstance(task.work, Outside) and task.work.future.done()]
        for task in done:
            assert isinstance(task.work, Outside)
            try:
                result = task.work.future.result()
            except BaseException as error:
                self._throw(task, error)
            else:
                self._send(task, result)
        return bool(done)

    def _open_slots(self) -> bool:
        """Give slots to those that ask for one, in the order of their arrival, while there is memory.

        -> whether any was given one, or ended, which lets others in.
        """
        progress = False
        for task in [task for task in self._running if isinstance(task.work, Open)]:
            work = task.work
            assert isinstance(work, Open)
            language = work.model.language
            try:
                size = language.nbytes(work.need)
                if self._kv_memory is not None and size > self._kv_memory:
                    raise _too_large(size, self._kv_memory)
                if not self._reclaim(lambda size=size: self._fits(size)):  # type: ignore[misc]
                    break
                if not self._reclaim(language.has_place, work.model):
                    continue
                self._use(size)
                try:
                    slot = language.open(work.need)
                except BaseException:
                    self._use(-size)
                    raise
            except Exception as error:
                self._throw(task, error)
            else:
                close = partial(self._release, task)
                lease = Lease(work.model, work.need, slot, size, close)
                task.leases.append(lease)
                self._send(task, lease)
            progress = True
        return progress

    def _use(self, size: int) -> None:
        """Of keys and values; what is left of them may be kept for later questions."""
        self._kv_used += size
        if self._spare is not None and self._kv_memory is not None:
            self._spare.allow(self._kv_memory - self._kv_used)

    def _fits(self, size: int) -> bool:
        return self._kv_memory is None or self._kv_used + size <= self._kv_memory

    def _reclaim(self, enough: Callable[[], bool], model: VisionLanguageModel | None = None) -> bool:
        """Take away spare slots, of those that came last first, until it is enough -> whether it is."""
        held = [(task, lease) for task in reversed(self._running) for lease in task.leases]
        for task, lease in held:
            if enough():
                break
            if lease.is_spare and model in (None, lease.model):
                self._release(task, lease)
        return enough()

    def _release(self, task: Task, lease: Lease) -> None:
        if not lease.is_open:
            return
        lease.is_open = False
        task.leases.remove(lease)
        self._use(-lease.size)
        try:
            lease.model.language.close(lease.slot)
        except Exception as error:  # of ranks that died, slots are gone anyway
            LOG.debug("a slot could not be closed: %s", error)

    def _step(self, tasks: Sequence[Task]) -> bool:
        if not tasks:
            return False
        works = [task.work for task in tasks]
        try:
            start = self._clock()
            results = self._run_steps(works)  # type: ignore[arg-type]
            self._charge(tasks, start)
        except Exception as error:
            if len(tasks) == 1:
                self._throw(tasks[0], error)
            else:
                # Whichever of them it is about, the others go on.
                for task in tasks:
                    self._step([task])
            return True
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, Exception):
                self._throw(task, result)
            else:
                self._send(task, result)
        return True

    def _run_one(self) -> bool:
        """One run of the work that takes several: of the small model first, of the one that came first."""
        waiting = [task for task in self._running if not isinstance(task.work, NO_RUNS)]
        if not waiting:
            return False
        impatient = [task for task in waiting if task.passed_over >= PATIENCE]
        task = impatient[0] if impatient else min(waiting, key=lambda task: ROLES.index(task.work.model.role))  # type: ignore
        for other in waiting:
            other.passed_over += 1
        task.passed_over = 0
        try:
            start = self._clock()
            is_done = task.work.advance()  # type: ignore[union-attr]
            self._charge([task], start)
        except Exception as error:
            self._throw(task, error)
            return True
        if is_done:
            self._send(task, task.work.result)  # type: ignore[union-attr]
        return True

    def _charge(self, tasks: Sequence[Task], start: float) -> None:
        """For a run of an engine since then, an equal share each."""
        share = (self._clock() - start) / len(tasks)
        for task in tasks:
            task.meter.seconds += share

    def _send(self, task: Task, result: Any) -> None:
        self._resume(task, lambda: task.conversation.send(result))

    def _throw(self, task: Task, error: BaseException) -> None:
        if not isinstance(error, EngineError):
            LOG.error("a question failed", exc_info=error)
            error = ModelFailed(f"the model failed ({error or type(error).__name__}); ask again, or see the log")
        self._resume(task, lambda: task.conversation.throw(error))

    def _resume(self, task: Task, resume: Callable[[], Work]) -> None:
        task.work = None
        try:
            task.work = resume()
            if isinstance(task.work, Outside):
                task.work.future = self._start(task.work.run)
        except StopIteration as done:
            self._finish(task, done.value)
        except EngineError as error:
            self._finish(task, error)
        except BaseException as error:  # a panic of the tokenizer's library, say, is no Exception
            LOG.error("a question failed", exc_info=error)
            self._finish(task, ModelFailed(f"the answer failed ({error!r}); ask again, or see the log"))

    def _finish(self, task: Task, outcome: Outcome) -> None:
        self._running.pop(task, None)
        if isinstance(task.work, Outside):
            task.work.future.cancel()
        try:
            task.conversation.close()
        except Exception as error:
            LOG.error("a question did not end well", exc_info=error)
        for lease in [*task.leases]:
            self._release(task, lease)
        task.on_done(outcome)


def _is_step(work: Work | None, role: str) -> bool:
    return isinstance(work, Step) and work.model.role == role


def _too_large(size: int, most: int) -> RequestError:
    return RequestError(
        f"the question's keys and values may take {size / GIB:.2f} GiB, and all questions together have "
        f"{most / GIB:.2f}; ask for fewer ",
        Setting("max_new_tokens"),
        ", give fewer pictures, or more ",
        Setting("kv_memory"),
    )
