"""Where requests become questions, and answers come back; of one event loop."""

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from anyio import to_thread

from engine.config import ExitConfig, SamplingConfig
from engine.errors import Overloaded, QuestionCancelled, QuestionTimedOut
from engine.json_file import Unreadable, parse_json
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.scheduler import TIMED_OUT
from engine.runtime.ticket import Ticket
from engine.serve.http.chat import read_chat
from engine.serve.http.errors import DRAINING, Refusal, refusal_of
from engine.serve.http.guard import InFlight, Receive
from engine.serve.http.metrics import Metrics
from engine.serve.http.reader import Asked, Limits
from engine.serve.http.request_schema import ChatRequest
from engine.serve.measures import count_answer, count_failure, set_load

FETCHERS = 4
"""Threads that fetch pictures from elsewhere, and look at schemas; pictures that come with the request have others."""
MOST_FETCHING = 64
"""Requests that are fetched or wait for it."""
MOST_VALUES = 1 << 18
"""Of a request; all of them are objects here, and a text of as many commas fits into no prompt."""
HEALTH_SECONDS = 30.0
GONE = "the client has gone before the question was answered"


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Served:
    """What is served, and what a request may ask for. created: when, in seconds since 1970."""

    pipeline: SglPipeline
    model: str
    limits: Limits
    created: int


class Desk:
    """Of one server."""

    def __init__(self, served: Served, max_body: int) -> None:
        self.served, self.metrics = served, Metrics(served.model)
        self.in_flight, self.is_draining = InFlight(max_body), False
        self._fetchers, self._fetching = ThreadPoolExecutor(FETCHERS, "sgl-fetch"), 0
        self._inference: asyncio.Future[None] | None = None
        self._heard = -math.inf
        """When an answer went on, of any question."""

    def read(self, body: bytes) -> tuple[ChatRequest, Asked]:
        """Raises Refusal."""
        if body.count(b",") > MOST_VALUES:
            raise Refusal(400, f"the request has more than {MOST_VALUES:,} values; send fewer")
        try:
            value = parse_json(body)
        except Unreadable as error:
            raise Refusal(400, f"the request cannot be read as JSON ({error}); send an object") from None
        return read_chat(value, self.served.model, self.served.limits)

    async def ask(self, asked: Asked, receive: Receive) -> Ticket:
        """Raises Refusal and ClientGone."""
        if self.is_draining:
            raise Refusal(503, DRAINING)
        self.metrics.count("questions_total")
        try:
            if asked.schema is None and all(
                url.lstrip()[:5].lower() == "data:" for url in (*asked.urls, *asked.clip_urls)
            ):
                question = await to_thread.run_sync(asked.fetched, abandon_on_cancel=True)
            else:
                question = await self._fetch(asked, receive)
            return self.served.pipeline.submit(question)
        except ClientGone:
            count_failure(self.metrics, QuestionCancelled(GONE))
            raise
        except Exception as error:
            count_failure(self.metrics, error)
            raise refusal_of(error) from None

    async def follow(self, ticket: Ticket, receive: Receive) -> AsyncGenerator[str, None]:
        """The pieces of an answer as they come. Raises ClientGone; then, and when the iterator is closed, the question
        ends within a token."""
        start, first, last = time.monotonic(), None, None
        gone = asyncio.create_task(_wait_until_gone(receive))
        pieces = ticket.__aiter__()
        try:
            with ticket:
                while True:
                    piece = asyncio.ensure_future(anext(pieces, None))
                    await asyncio.wait({piece, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not piece.done():
                        piece.cancel()
                        raise ClientGone
                    text = piece.result()
                    if text is None:
                        break
                    last = self._heard = time.monotonic()
                    first = last if first is None else first
                    self.metrics.count("pieces_total")
                    yield text
        finally:
            gone.cancel()
            self._record(ticket, start, first, last)

    def _record(self, ticket: Ticket, start: float, first: float | None, last: float | None) -> None:
        outcome = ticket.wait() if ticket.done() else None
        now = time.monotonic()
        if isinstance(outcome, Answer):
            count_answer(self.metrics, outcome, (first or now) - start, (last or now) - start)
        else:
            count_failure(self.metrics, outcome or QuestionCancelled(GONE))

    def metrics_text(self) -> bytes:
        set_load(self.metrics, self.served.pipeline.load_now(), self.in_flight.requests)
        return self.metrics.text()

    async def _fetch(self, asked: Asked, receive: Receive) -> Question:
        """Raises EngineError and ClientGone."""
        if self._fetching >= MOST_FETCHING:
            raise Overloaded(f"pictures or schemas of {self._fetching} requests are looked at already; ask again later")
        self._fetching += 1
        # One that runs goes on to its end, and keeps its thread: who leaves and comes again has no more of them.
        fetched = asyncio.get_running_loop().run_in_executor(self._fetchers, asked.fetched)
        gone = asyncio.create_task(_wait_until_gone(receive))
        try:
            either: set[asyncio.Future[Any]] = {fetched, gone}
            await asyncio.wait(either, timeout=asked.question.timeout, return_when=asyncio.FIRST_COMPLETED)
            if fetched.done():
                return fetched.result()
            raise ClientGone if gone.done() else QuestionTimedOut(TIMED_OUT)
        finally:
            fetched.cancel()
            gone.cancel()
            self._fetching -= 1

    async def infer(self) -> None:
        """Both models answer, one question for all who ask meanwhile. Raises EngineError; not where there are too many
        others and those are answered."""
        if self._inference is None or self._inference.done():
            self._inference = asyncio.ensure_future(self._infer())
        try:
            await asyncio.shield(self._inference)
        except (Overloaded, QuestionTimedOut):
            if time.monotonic() - self._heard > HEALTH_SECONDS:
                raise

    async def _infer(self) -> None:
        exit = ExitConfig(enabled=False)
        question = Question((), "Hi", exit=exit, sampling=SamplingConfig(max_new_tokens=1), timeout=HEALTH_SECONDS)
        with self.served.pipeline.submit(question) as ticket:
            async for _ in ticket:
                pass
            ticket.result()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def encode(event: object) -> bytes:
    """As a server-sent event."""
    text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n".encode()
