"""Where requests become questions, and answers come back; of one event loop."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread

from engine.errors import QuestionCancelled
from engine.json_file import Unreadable, parse_json
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.ticket import Ticket
from engine.serve.http.chat import read_chat
from engine.serve.http.errors import DRAINING, Refusal, refusal_of
from engine.serve.http.guard import InFlight, Receive
from engine.serve.http.metrics import Metrics
from engine.serve.http.reader import Asked, Limits
from engine.serve.http.schema import ChatRequest
from engine.serve.measures import count_answer, count_failure, set_load

FETCHERS = 4
"""Threads that fetch pictures from elsewhere; those that come with the request have others."""
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
        self._fetchers: CapacityLimiter | None = None

    def read(self, body: bytes) -> tuple[ChatRequest, Asked]:
        """Raises Refusal."""
        try:
            value = parse_json(body)
        except Unreadable as error:
            raise Refusal(400, f"the request cannot be read as JSON ({error}); send an object") from None
        return read_chat(value, self.served.model, self.served.limits)

    async def ask(self, asked: Asked) -> Ticket:
        """Raises Refusal."""
        if self.is_draining:
            raise Refusal(503, DRAINING)
        self.metrics.count("questions_total")
        try:
            question = await to_thread.run_sync(asked.fetched, limiter=self._limiter(asked), abandon_on_cancel=True)
            return self.served.pipeline.submit(question)
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
                    last = time.monotonic()
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

    def _limiter(self, asked: Asked) -> CapacityLimiter | None:
        if all(url.lstrip()[:5].lower() == "data:" for url in asked.urls):
            return None
        if self._fetchers is None:
            self._fetchers = CapacityLimiter(FETCHERS)
        return self._fetchers


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def encode(event: object) -> bytes:
    """As a server-sent event."""
    text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n".encode()
