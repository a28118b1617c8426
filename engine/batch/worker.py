"""One rank's questions: many in flight in its pipeline, each answered in the form of its line."""

import json
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

from engine.batch.tally import Tally
from engine.batch.terms import BadLine, Reader, Reply, Request
from engine.errors import EngineError, QuestionTimedOut, RequestError
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.ticket import Ticket, ended

FINAL = RequestError | QuestionTimedOut
"""What a question fails with again when it is asked again; ranks, hosts of pictures and decoders may only have died."""
READERS = 8
"""Threads that read lines and fetch pictures."""


class Task(NamedTuple):
    """A line to be answered."""

    place: int
    content: bytes


class Answered(NamedTuple):
    """A line's answer, in its form."""

    place: int
    content: bytes
    tally: Tally


class Asker(Protocol):
    """Answers a rank's questions."""

    capacity: int
    """Questions that it has at once: enough that the next one's pictures are open in time."""

    def ask(self, tasks: Iterable[Task]) -> None: ...

    def cancel(self, places: Iterable[int]) -> None:
        """Of those that somebody else has answered."""

    def wait(self, seconds: float | None) -> list[Answered]:
        """What was answered since it was last asked, after so many seconds at most if that is nothing; None waits for
        an answer."""


class _Ended(NamedTuple):
    """A question that came back."""

    task: Task
    request: Request
    ticket: Ticket


class Worker:
    """An `Asker` over a pipeline; a context manager."""

    def __init__(self, pipeline: SglPipeline, reader: Reader[Any]) -> None:
        self.capacity = pipeline.at_once
        self._pipeline, self._reader = pipeline, reader
        self._pool = ThreadPoolExecutor(READERS, "sgl-lines")
        self._news: queue.SimpleQueue[_Ended | Answered | BaseException] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._asked: dict[int, Ticket | None] = {}
        """Place of a line that is in flight -> its question's ticket, once it has one."""
        self._failed: set[int] = set()
        """Those that failed once."""

    def ask(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._asked[task.place] = None
            self._pool.submit(self._start, task)

    def cancel(self, places: Iterable[int]) -> None:
        for place in places:
            with self._changing:
                ticket = self._asked.pop(place, None)
            if ticket is not None:
                ticket.cancel()

    def wait(self, seconds: float | None) -> list[Answered]:
        """Raises what is wrong here rather than with a question."""
        answers: list[Answered] = []
        with suppress(queue.Empty):
            while not answers:
                answers += self._end(self._news.get(timeout=seconds))
            while True:
                answers += self._end(self._news.get_nowait())
        return answers

    def close(self) -> None:
        """Nobody waits for what is in flight any more."""
        self.cancel([*self._asked])
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, task: Task) -> None:
        try:
            request = self._reader.read(task.content, task.place + 1)
            ticket = self._submit(request)
            with self._changing:
                is_wanted = task.place in self._asked
                if is_wanted:
                    self._asked[task.place] = ticket
            if is_wanted:
                ticket.on_change(partial(self._look, _Ended(task, request, ticket)))
            else:
                ticket.cancel()
        except BadLine as bad:
            self._news.put(_answered(task.place, bad.reply, Tally(errors=1)))
        except BaseException as error:
            self._news.put(error)

    def _submit(self, request: Request) -> Ticket:
        """Once there is room; what is wrong with its pictures is its outcome."""
        try:
            question = self._reader.question(request)
        except EngineError as error:
            return ended(error)
        return self._pipeline.ask(question)

    def _look(self, asked: _Ended) -> None:
        if asked.ticket.done():
            self._news.put(asked)

    def _end(self, news: _Ended | Answered | BaseException) -> list[Answered]:
        """The answer, unless nobody waits for it."""
        if isinstance(news, BaseException):
            raise news
        if isinstance(news, Answered):
            return [news] if self._forget(news.place) else []
        task, request, ticket = news
        if self._asked.get(task.place) is not ticket:
            return []
        outcome = ticket.wait()
        if not isinstance(outcome, Answer | FINAL) and task.place not in self._failed:
            self._failed.add(task.place)
            self.ask([task])
            return []
        self._forget(task.place)
        if isinstance(outcome, Answer):
            try:
                return [_answered(task.place, request.answered(outcome, self._pipeline), request.counted(outcome))]
            except ValueError as error:  # a number in it is none
                outcome = EngineError(f"its answer cannot be written ({error})")
        return [_answered(task.place, request.failed(outcome), Tally(errors=1))]

    def _forget(self, place: int) -> bool:
        """Whether it was in flight."""
        with self._changing:
            was_asked = place in self._asked
            self._asked.pop(place, None)
        self._failed.discard(place)
        return was_asked


def _answered(place: int, reply: Reply, tally: Tally) -> Answered:
    said = json.dumps(reply, ensure_ascii=False, allow_nan=False)
    return Answered(place, said.encode(errors="replace"), tally)  # a path in it may be no UTF-8
