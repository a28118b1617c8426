"""Rank 0 hands out questions as ranks ask for them, and keeps what they answer; the others answer until it says so."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from engine.batch.answers import Answers
from engine.batch.differing import differing
from engine.batch.handout import Handout
from engine.batch.hearing import SILENCE_SECONDS, Hearing
from engine.batch.lines import Line, Source
from engine.batch.notices import tell
from engine.batch.tally import Tally
from engine.batch.terms import Reader, RunFailed
from engine.batch.worker import Answered, Asker, Task
from engine.errors import EngineError
from engine.runtime.tensor_parallel import Identity

LEADER = 0
MOST_AHEAD = 1 << 16
"""Lines that may be answered while the first that is not holds up the file's order."""
SHORTEST_PAUSE, LONGEST_PAUSE = 1e-5, 5e-3
"""Seconds between two looks for a message, longer and longer."""
OnProgress = Callable[[Tally, int], None]
"""Gets what was counted so far, and about how many lines there will be."""


@dataclass(frozen=True)
class Joined:
    """A rank is ready. machine: its name. agreed: its `Reader`'s."""

    capacity: int
    identity: Identity
    machine: str
    agreed: dict[str, Any]


@dataclass(frozen=True)
class Left:
    """A rank answers no more. reason: a sentence."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """What ends the run, found by another rank than 0. reason: a sentence."""

    reason: str


@dataclass(frozen=True)
class Work:
    """What a rank is to answer, and what it need not any more."""

    tasks: tuple[Task, ...]
    cancelled: tuple[int, ...] = ()


Said = Joined | Left | Failed | tuple[Answered, ...]


class Peers(Protocol):
    """The other ranks, as rank 0 sees them."""

    size: int
    """How many there are."""

    def heard(self) -> list[tuple[int, Said]]:
        """What ranks said since it was last asked."""

    def send(self, rank: int, work: Work) -> None: ...

    def begin(self, started: int) -> None:
        """Let them open their engines. started: when the run began, in seconds since 1970."""

    def lose(self, rank: int) -> None:
        """It has fallen silent."""


class Leader(Protocol):
    """Rank 0, as another sees it."""

    def heard(self) -> list[Work | None]:
        """None is the end."""

    def send(self, said: Said) -> None: ...

    def lose(self) -> NoReturn:
        """It has fallen silent: end this process."""


class Alone:
    """No other ranks: `Peers` of one process."""

    size = 0

    def begin(self, started: int) -> None:
        pass

    def lose(self, rank: int) -> None:
        raise AssertionError("there is nobody")

    def heard(self) -> list[tuple[int, Said]]:
        return []

    def send(self, rank: int, work: Work) -> None:
        raise AssertionError("there is nobody")


@dataclass
class Pause:
    """Between two looks, longer and longer until something happens."""

    seconds: float = SHORTEST_PAUSE

    def after(self, has_happened: bool) -> float:
        self.seconds = SHORTEST_PAUSE if has_happened else min(LONGEST_PAUSE, 1.5 * self.seconds)
        return self.seconds


class Crew:
    """All ranks, led from this one."""

    def __init__(
        self, lines: Source, answers: Answers, reader: Reader[Any], worker: Asker, identity: Identity, peers: Peers
    ) -> None:
        """worker: this rank's. identity: what the others must have in common with it."""
        self._lines, self._answers, self._reader = lines, answers, reader
        self._worker, self._identity, self._peers = worker, identity, peers
        self._handout = Handout(self._unanswered(), lines.left)
        self._hearing = Hearing()
        self._capacities: dict[int, int] = {}
        """Of each rank that is ready."""
        self.seconds = 0.0
        """Spent on handing out, reading included."""
        self._join(LEADER, worker.capacity)

    def run(self, on_progress: OnProgress = lambda tally, lines: None) -> None:
        """Until everything is answered. Raises EngineError."""
        asking, pause = {LEADER}, Pause()
        while True:
            start = time.perf_counter()
            idle = {rank for rank in asking if not self._give(rank)}
            self.seconds += time.perf_counter() - start
            if self._handout.is_over():
                break
            heard: list[tuple[int, Said]] = []
            while not heard:
                heard = self._listen()
                seconds = pause.after(bool(heard)) if self._peers.size else None
                if answered := self._worker.wait(seconds):
                    heard.append((LEADER, tuple(answered)))
            for rank, said in heard:
                self._hear(rank, said)
            tally = self._answers.tally
            on_progress(tally, tally.lines() + self._handout.unanswered())
            # Who has nothing to do asks again when something has changed.
            asking = {rank for rank in idle | {rank for rank, _ in heard} if rank in self._capacities}
        self._answers.finish()

    def ranks(self) -> int:
        """How many have answered, and still do."""
        return len(self._capacities)

    def _give(self, rank: int) -> bool:
        """Whether it has something to do now."""
        lines = self._handout.take(rank, self._capacities[rank])
        tasks = tuple(Task(line.place, self._lines.content(line)) for line in lines)
        if tasks and rank == LEADER:
            self._worker.ask(tasks)
        elif tasks:
            self._peers.send(rank, Work(tasks))
        return self._handout.has_work(rank)

    def _listen(self) -> list[tuple[int, Said]]:
        """What other ranks said, and who is to be left, as they have said nothing for long."""
        self._hearing.listen()
        heard = self._peers.heard()
        for rank, _ in heard:
            self._hearing.hear(rank)
        if self._hearing.is_beat():
            for rank in self._hearing.silent():
                self._peers.lose(rank)
                heard.append((rank, Left(f"it has said nothing for {SILENCE_SECONDS:g} s")))
            for rank in range(1, self._peers.size + 1):
                self._peers.send(rank, Work(()))
        return heard

    def _hear(self, rank: int, said: Said) -> None:
        """Raises EngineError."""
        if isinstance(said, Joined):
            if difference := self._identity.difference(said.identity):
                raise EngineError(
                    f"the engine directory of rank {rank} on {said.machine} {difference}; give all ranks the same "
                    "engine and packages"
                )
            if unlike := differing(self._reader.agreed(), said.agreed):
                raise EngineError(
                    f"rank {rank} on {said.machine} was started with another {unlike}; give all ranks the same command"
                )
            self._join(rank, said.capacity)
        elif isinstance(said, Left):
            tell(f"rank {rank} answers no more: {said.reason}")
            self._hearing.forget(rank)
            if self._capacities.pop(rank, None) is not None:
                self._handout.lose(rank)
        elif isinstance(said, Failed):
            raise RunFailed(said.reason)
        else:
            self._keep(rank, said)

    def _keep(self, rank: int, answered: tuple[Answered, ...]) -> None:
        cancelled: dict[int, list[int]] = {}
        for answer in answered:
            others = self._handout.answered(rank, answer.place)
            if others is None:
                continue
            self._answers.add(answer.place, answer.content, answer.tally, self._lines.mark)
            for other in others:
                cancelled.setdefault(other, []).append(answer.place)
        for other, places in cancelled.items():
            if other == LEADER:
                self._worker.cancel(places)
            else:
                self._peers.send(other, Work((), tuple(places)))

    def _join(self, rank: int, capacity: int) -> None:
        self._capacities[rank] = capacity
        self._handout.join(rank)

    def _unanswered(self) -> Iterator[Line | None]:
        """None where the next would be answered too early."""
        answers = self._answers
        while (line := self._lines.read()) is not None:
            while answers.is_ordered and line.place >= answers.next + MOST_AHEAD:
                yield None
            if answers.holds(line.place):
                continue
            content = self._lines.content(line)
            if content.strip():
                yield self._reader.look_at(content, line)
            else:
                answers.add(line.place, b"", Tally(), self._lines.mark)


def follow(leader: Leader, worker: Asker, identity: Identity, machine: str, agreed: dict[str, Any]) -> None:
    """What another rank does until rank 0 says that it is over, or is lost. agreed: its `Reader`'s."""
    leader.send(Joined(worker.capacity, identity, machine, agreed))
    pause, hearing = Pause(), Hearing()
    while True:
        hearing.listen()
        heard = leader.heard()
        for work in heard:
            hearing.hear(LEADER)
            if work is None:
                return
            worker.ask(work.tasks)
            worker.cancel(work.cancelled)
        if answered := worker.wait(pause.after(bool(heard))):
            pause.after(True)
            leader.send(tuple(answered))
        if hearing.is_beat():
            leader.send(())
            if hearing.silent():
                leader.lose()
