"""Pipelines, ranks and answers without engines: what is asked and answered is made up, in an order that a test says."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.batch.crew import Joined, Left, Said, Work
from engine.batch.lines import Mark
from engine.batch.request import LineReader
from engine.batch.tally import Tally
from engine.batch.terms import Terms
from engine.batch.worker import Answered, Task
from engine.errors import EngineError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.question import Question, Reuse
from engine.runtime.tensor_parallel import Identity
from engine.runtime.ticket import Ticket
from engine.runtime.utterance import FinishReason

IDENTITY = Identity("1", {}, "components")
AGREED = LineReader(Terms("pair", Path(), lambda answer, exit: {})).agreed()
ONE = Tally(answers=1, exits=1, visual_tokens=4, kept=1, generated=2)


def make_answer(text: str) -> Answer:
    return Answer(
        text=text,
        answered_by=AnsweredBy.LARGE,
        finish_reason=FinishReason.STOP,
        decision=None,
        small_text="a guess",
        prompt_tokens=7,
        visual_tokens=4,
        guidance=None,
        kept=np.array([1]),
        importance=None,
        boxes=np.zeros((4, 4), np.float32),
        images=np.zeros(4, np.int64),
        token_ids=(1, 2),
        probabilities=(0.5, 0.5),
        top=((), ()),
        num_layers=2,
        seconds={},
        engine_seconds={},
        tiles=1,
        tiles_skipped=0,
        budget=None,
        drafted=0,
        accepted=0,
        speculated=0,
        speculated_accepted=0,
        reuse=Reuse(),
    )


def describe(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text}


class FakePipeline:
    """Answers at once, with what `says` makes of a question, or holds it back until `answer` is called."""

    at_once = 8

    def __init__(self, says: Callable[[Question], Answer | EngineError] | None = None) -> None:
        self._says = says
        self.asked: list[tuple[Question, Ticket]] = []
        self.cancelled: list[Ticket] = []

    def ask(self, question: Question) -> Ticket:
        ticket = Ticket(lambda: self.cancelled.append(ticket))
        self.asked.append((question, ticket))
        if self._says is not None:
            ticket.put(self._says(question))
        return ticket


def reply_of(task: Task) -> bytes:
    """Of `FakeAsker`: it says what was asked."""
    return json.dumps({"answer": json.loads(task.content)["question"]}).encode()


@dataclass
class FakeAsker:
    """Answers by chance some of what it has. dies_after: when so many are answered, of which the last are lost."""

    capacity: int
    chance: random.Random
    dies_after: int | None = None
    log: list[int] = field(default_factory=list)
    """Places, as they were asked."""
    answered: list[int] = field(default_factory=list)
    tasks: dict[int, Task] = field(default_factory=dict)
    most: int = 0
    """That it had at once."""

    def ask(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            assert task.place not in self.tasks
            self.log.append(task.place)
            self.tasks[task.place] = task
        self.most = max(self.most, len(self.tasks))

    def cancel(self, places: Iterable[int]) -> None:
        for place in places:
            self.tasks.pop(place, None)

    def wait(self, seconds: float | None) -> list[Answered]:
        if not self.tasks:
            assert seconds is not None, "it waits for nothing"
            return []
        least = 1 if seconds is None else 0
        chosen = self.chance.sample(sorted(self.tasks), self.chance.randint(least, min(3, len(self.tasks))))
        answers = [Answered(place, reply_of(self.tasks.pop(place)), ONE) for place in chosen]
        self.answered += chosen
        if self.dies_after is not None and len(self.answered) > self.dies_after:
            raise Died
        return answers


class Died(Exception):
    """The process was killed."""


class FakePeers:
    """Other ranks in this thread: each gets a turn whenever rank 0 listens.

    silent: ranks that die after so many answers, which nobody is told; dying: of which rank 0 is told.
    """

    def __init__(self, askers: dict[int, FakeAsker], chance: random.Random) -> None:
        self.askers, self._chance = askers, chance
        self.size = len(askers)
        self.dying: dict[int, int] = {}
        self.silent: dict[int, int] = {}
        self.slow: set[int] = set()
        self.lost: list[int] = []
        """By rank 0, as they said nothing."""
        self._dead: set[int] = set()
        self._joined: set[int] = set()
        self._mail: dict[int, list[Work]] = {rank: [] for rank in askers}

    def send(self, rank: int, work: Work) -> None:
        self._mail[rank].append(work)

    def lose(self, rank: int) -> None:
        self.lost.append(rank)

    def heard(self) -> list[tuple[int, Said]]:
        heard: list[tuple[int, Said]] = []
        for rank in self._chance.sample(sorted(self.askers), self._chance.randint(0, len(self.askers))):
            if rank not in self._dead:
                heard += [(rank, said) for said in self._turn(rank, self.askers[rank])]
        return heard

    def _turn(self, rank: int, asker: FakeAsker) -> list[Said]:
        if rank not in self._joined:
            self._joined.add(rank)
            return [Joined(asker.capacity, IDENTITY, f"machine {rank}", AGREED)]
        for work in self._mail[rank]:
            asker.ask(work.tasks)
            asker.cancel(work.cancelled)
        self._mail[rank].clear()
        if rank in self.slow and self._chance.random() < 0.99:
            return []
        if len(asker.answered) >= self.dying.get(rank, 1 << 60):
            self._dead.add(rank)
            return [Left("it died")]
        if len(asker.answered) >= self.silent.get(rank, 1 << 60):
            self._dead.add(rank)
            return []
        answers = asker.wait(0)
        return [tuple(answers)] if answers else []


def no_mark() -> Mark:
    return Mark(1 << 40, 0, "")
