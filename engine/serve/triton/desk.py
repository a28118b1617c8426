"""Where requests come in and answers go out.

The thread of the server only reads a request and asks the pipeline. One thread of this desk touches what answers go out
by, senders and metrics; whatever happens to a question, it is told by a queue, and sends exactly one last response.
"""

import ctypes
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from engine.errors import EngineError, Overloaded, QuestionCancelled, QuestionTimedOut
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.scheduler import Outcome
from engine.runtime.ticket import Ticket
from engine.serve.measures import count_answer, count_failure
from engine.serve.triton import backend
from engine.serve.triton.inquiry import EmptyQuestion, Inquiry, Reader
from engine.serve.triton.metrics import Metrics
from engine.serve.triton.reply import answer_outputs, text

LOG = logging.getLogger(__name__)
FETCHERS = 4
"""Threads that fetch pictures."""
POLL_SECONDS = 0.02
POLLS = 4
"""Clients that are looked after each time: a call to the server's process for each."""
GRACE_SECONDS = 5.0
"""For the pipeline to end a question whose time is over; then the desk does."""
CLOSE_SECONDS = 5.0
TRIM_SECONDS = 1.0
"""Between two times that memory of questions that were answered is given back, when there are no others."""
GONE = "the client has gone before the question was answered"
STOPPED = "the server stopped before the question was answered; ask again, or another server"
LATE = "the question was not answered in its time; give it more"


@dataclass(eq=False)
class Exchange:
    """One request, until its last response has gone; then it has no sender any more."""

    sender: Any
    arrived: float = field(default_factory=time.monotonic)
    inquiry: Inquiry | None = None
    ticket: Ticket | None = None
    failure: Exception | None = None
    """Instead of a ticket."""
    first_piece: float | None = None
    last_piece: float | None = None
    is_cancelled: bool = False

    def left(self) -> float | None:
        """Seconds of its time."""
        if self.inquiry is None or self.inquiry.timeout is None:
            return None
        return self.arrived + self.inquiry.timeout - time.monotonic()


def trim_memory() -> None:
    """Give memory that is free to the machine: the C library keeps what lies between pieces that are not. Errors refer
    to what they ended, which only a collection finds."""
    gc.collect()
    with suppress(AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)


class Desk:
    """Of one served model."""

    def __init__(self, pipeline: SglPipeline, reader: Reader, metrics: Metrics) -> None:
        self._pipeline, self._reader, self._metrics = pipeline, reader, metrics
        self._news: queue.SimpleQueue[Exchange | None] = queue.SimpleQueue()
        """Exchanges that something happened to; None ends the thread."""
        self._open: dict[Exchange, None] = {}
        """Those whose last response has not gone, the one that was looked after longest ago first."""
        self._fetchers = ThreadPoolExecutor(FETCHERS, "sgl-fetch")
        self._fetching = threading.Semaphore(reader.serve.max_running + reader.serve.max_waiting)
        self._next_poll, self._next_trim = 0.0, time.monotonic() + TRIM_SECONDS
        self._has_waste = False
        """Whether a question ended since memory was given back."""
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="sgl-desk", daemon=True)
        self._thread.start()

    def take(self, request: Any) -> None:
        """In the server's thread, which waits for nothing here."""
        exchange = Exchange(request.get_response_sender())
        try:
            exchange.inquiry = self._reader.read(backend.read_inputs(request), request.parameters())
            if not exchange.inquiry.urls and not exchange.inquiry.clip_urls:
                self._ask(exchange)
            elif self._fetching.acquire(blocking=False):
                self._fetchers.submit(self._fetch, exchange)
            else:
                raise Overloaded("too many questions wait for pictures; ask again later, or another server")
        except Exception as error:  # whatever a stranger sent, the server keeps serving
            exchange.failure = error
        self._news.put(exchange)

    def close(self) -> None:
        """End all questions, and the thread. The server takes no more of metrics by then."""
        self._is_closing = True
        self._pipeline.close()
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._news.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _fetch(self, exchange: Exchange) -> None:
        try:
            if not exchange.is_cancelled:
                self._ask(exchange)
        except Exception as error:
            exchange.failure = error
            self._news.put(exchange)
        finally:
            self._fetching.release()

    def _ask(self, exchange: Exchange) -> None:
        """Raises EngineError."""
        assert exchange.inquiry is not None
        question = exchange.inquiry.question(exchange.left())
        left = exchange.left()
        if left is not None and left <= 0:
            raise QuestionTimedOut(LATE)
        ticket = exchange.ticket = self._pipeline.submit(question)
        ticket.on_change(partial(self._news.put, exchange))
        if exchange.is_cancelled:  # while its pictures were fetched
            ticket.cancel()

    def _run(self) -> None:
        """The desk's thread. Nothing that goes wrong with one exchange, or with a metric, ends it."""
        while True:
            try:
                exchange = self._news.get(timeout=self._patience())
            except queue.Empty:
                pass
            else:
                if exchange is None:
                    break
                self._attend(exchange)
            self._try(self._look_after)
        for exchange in [*self._open]:
            self._try(partial(self._finish, exchange, EngineError(STOPPED)))

    def _patience(self) -> float | None:
        """Seconds until there is something to do, if nothing happens."""
        if self._open:
            return POLL_SECONDS
        return TRIM_SECONDS if self._has_waste else None

    def _try(self, run: Callable[[], None], otherwise: str = "the desk failed") -> None:
        try:
            run()
        except Exception as error:
            LOG.error(otherwise, exc_info=error)

    def _attend(self, exchange: Exchange) -> None:
        """Send what is new of an exchange."""
        if exchange.sender is None:
            return
        if exchange not in self._open:
            self._open[exchange] = None
            if not isinstance(exchange.failure, EmptyQuestion):
                self._metrics.count("questions_total")
        try:
            if exchange.failure is not None:
                self._finish(exchange, exchange.failure)
            elif (ticket := exchange.ticket) is not None:
                is_done = ticket.done()  # asked first: no piece comes after
                if pieces := ticket.take():
                    self._say(exchange, pieces)
                if is_done:
                    self._finish(exchange, ticket.wait())
        except Exception as error:
            LOG.error("an answer could not be sent", exc_info=error)
            self._finish(exchange, error)

    def _say(self, exchange: Exchange, pieces: list[str]) -> None:
        exchange.last_piece = time.monotonic()
        if exchange.first_piece is None:
            exchange.first_piece = exchange.last_piece
        self._metrics.count("pieces_total", len(pieces))
        assert exchange.inquiry is not None
        if exchange.inquiry.stream:
            backend.send(exchange.sender, {"text_output": text("".join(pieces))})

    def _finish(self, exchange: Exchange, outcome: Outcome | Exception) -> None:
        """Send the last response, by one way or another; nothing of the exchange is used after."""
        sender, ticket = exchange.sender, exchange.ticket
        if sender is None:
            return
        exchange.sender = exchange.ticket = None
        self._open.pop(exchange, None)
        self._has_waste = True
        if ticket is not None:
            ticket.cancel()
        if isinstance(outcome, QuestionCancelled) and not exchange.is_cancelled:
            outcome = EngineError(STOPPED)
        if isinstance(outcome, Answer):
            assert exchange.inquiry is not None
            try:
                backend.send(sender, answer_outputs(outcome, exchange.inquiry), is_last=True)
            except Exception as error:
                LOG.error("an answer could not be sent", exc_info=error)
                outcome = error
        if not isinstance(outcome, Answer):
            try:
                backend.send_error(sender, outcome)
            except Exception as error:
                LOG.error("an error could not be sent", exc_info=error)
                self._try(partial(backend.send_end, sender), "an end could not be sent")
        self._record(exchange, outcome)

    def _record(self, exchange: Exchange, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Answer):
            now = time.monotonic()
            pieces = exchange.first_piece or now, exchange.last_piece or now
            count_answer(self._metrics, outcome, *(at - exchange.arrived for at in pieces))
        elif not isinstance(outcome, EmptyQuestion):
            count_failure(self._metrics, outcome)

    def _look_after(self) -> None:
        """See whether clients are still there and questions in their time, a few at a time; hand metrics over."""
        if self._is_closing:
            return
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + POLL_SECONDS
            for exchange in list(islice(self._open, POLLS)):
                self._open[exchange] = self._open.pop(exchange)
                self._look_at(exchange)
        self._metrics.hand_over(self._pipeline.load_now(), len(self._open), is_idle=not self._open)
        if not self._open and self._has_waste and now >= self._next_trim:
            self._next_trim, self._has_waste = now + TRIM_SECONDS, False
            trim_memory()

    def _look_at(self, exchange: Exchange) -> None:
        left = exchange.left()
        if not exchange.is_cancelled and exchange.sender.is_cancelled():
            exchange.is_cancelled = True
            if exchange.ticket is not None:
                exchange.ticket.cancel()
            else:
                self._finish(exchange, QuestionCancelled(GONE))
        elif left is not None and left < -(GRACE_SECONDS if exchange.ticket is not None else 0):
            self._finish(exchange, QuestionTimedOut(LATE))
