"""What whoever asks a question holds while it is answered."""

import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType

from engine.errors import EngineError
from engine.runtime.answer import Answer
from engine.runtime.scheduler import Outcome, answered

LOG = logging.getLogger(__name__)

Event = str | Outcome
"""A piece of the answer's text; at last, the outcome."""


def waitable(seconds: float | None) -> float | None:
    """As long as a thread can wait, and not less than no time."""
    return None if seconds is None else min(max(0.0, seconds), threading.TIMEOUT_MAX)


class Ticket:
    """A question on its way. Iterating gives the text piece by piece, once, as it comes; `async for` does, too.

    A context manager: who leaves it without the outcome cancels the question. Once there is an outcome, that is
    all that it holds.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._pieces: deque[str] = deque()
        self._outcome: Outcome | None = None
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def done(self) -> bool:
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> Answer:
        """The answer, once there is one. Raises EngineError, and TimeoutError after so many seconds."""
        return answered(self.wait(timeout))

    def wait(self, timeout: float | None = None) -> Outcome:
        """The outcome, once there is one. Raises TimeoutError after so many seconds."""
        with self._changed:
            if not self._changed.wait_for(self.done, waitable(timeout)):
                raise TimeoutError(f"no answer within {timeout:g} s")
        assert self._outcome is not None
        return self._outcome

    def take(self) -> list[str]:
        """The pieces that came since somebody looked."""
        with self._changed:
            pieces = [*self._pieces]
            self._pieces.clear()
        return pieces

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call it when a piece or the outcome comes, and now: in the thread that answers, so it must return at once.

        What it raises there is logged.
        """
        with self._changed:
            if not self.done():
                self._listeners.append(listener)
        listener()

    def cancel(self) -> None:
        """Let the question end as soon as can be, unless it has; others are not touched."""
        if not self.done():
            self._cancel()

    def put(self, event: Event) -> None:
        """For whoever answers; raises nothing."""
        with self._changed:
            if isinstance(event, str):
                self._pieces.append(event)
            else:
                self._outcome = event
            self._changed.notify_all()
            listeners = [*self._listeners]
            if self.done():
                self._listeners, self._cancel = [], _nothing
        for listener in listeners:
            try:
                listener()
            except BaseException as error:  # others' questions are answered in this thread, too
                LOG.error("a listener failed", exc_info=error)

    def __iter__(self) -> Iterator[str]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self.done())
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
            yield piece

    async def __aiter__(self) -> AsyncIterator[str]:
        import asyncio  # takes longer than a short answer, and few need it

        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed, nobody waits
                loop.call_soon_threadsafe(changed.set)

        self.on_change(wake)
        while True:
            changed.clear()
            while (piece := self._take_one()) is not None:
                yield piece
            if self.done() and not self._pieces:
                return
            await changed.wait()

    def _take_one(self) -> str | None:
        with self._changed:
            return self._pieces.popleft() if self._pieces else None

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()


def _nothing() -> None:
    """There is nothing to cancel any more."""


def ended(error: EngineError) -> Ticket:
    """Of a question that nobody will answer."""
    ticket = Ticket(lambda: None)
    ticket.put(error)
    return ticket
