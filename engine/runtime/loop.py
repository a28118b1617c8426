"""The thread that answers: it runs the scheduler, and with it both models; everybody else only leaves word."""

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from engine.errors import EngineError, ModelFailed, Overloaded, QuestionCancelled, QuestionTimedOut, RequestError
from engine.runtime.cascade import Pair, answer
from engine.runtime.clips import clip_bytes, hold_clip
from engine.runtime.images.held import held_bytes, hold
from engine.runtime.question import Meter, Question
from engine.runtime.scheduler import TIMED_OUT, Load, Outcome, Scheduler, Spare, Task
from engine.runtime.ticket import Ticket, waitable

LOG = logging.getLogger(__name__)
OUTSIDE_THREADS = 2
"""That open pictures and tokenize beside the loop; what is decoded at once is in memory at once."""
PICTURE_MEMORY = 1 << 30
"""Bytes of pictures, other than those of files, that questions hold until they end: of 22 with 12 million pixels."""
CLOSE_SECONDS = 10.0
"""For the run of an engine that is in progress when everything ends."""
WORDS_AT_ONCE = 32
"""That others left, between two turns: whoever asks and cancels as fast as they are taken keeps nobody from a turn."""
CANCELLED = "the question was cancelled by whoever asked it"
CLOSED = "the pipeline was closed before the question was answered"


class Loop:
    """Answers the questions of one pair. Its thread starts with the first one."""

    def __init__(
        self,
        pair: Pair,
        max_running: int,
        max_waiting: int,
        kv_memory: int | None,
        picture_memory: int = PICTURE_MEMORY,
        spare: Spare | None = None,
    ) -> None:
        """See `SglPipeline.load`."""
        self._pair = pair
        self._process = os.getpid()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(OUTSIDE_THREADS, "sgl-outside")
        self._scheduler = Scheduler(self._outside, max_running, max_waiting, kv_memory, spare=spare)
        self._room = threading.Condition()
        self._expected = 0
        """Questions that were submitted and have not ended."""
        self._untold = 0
        """Those, and the ones that have ended and whose ticket does not say so yet."""
        self._most = max_running + max_waiting
        self._picture_bytes, self._picture_memory = 0, picture_memory
        self._turns: deque[object] = deque()
        """Of those who wait for room: whoever came first is the next, however little the others need."""
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._end: EngineError | None = None
        """Why it answers no more."""

    def submit(self, question: Question, waits: bool) -> Ticket:
        """Ask. waits: for room where too many wait already, or their pictures hold too much memory; else Overloaded is
        raised."""
        self._check_process()
        deadline = None if question.timeout is None else time.monotonic() + question.timeout
        size = sum(map(held_bytes, question.images)) + sum(map(clip_bytes, question.videos))
        self._enter(size, waits, deadline)
        try:
            images = tuple(hold(image, question.picture) for image in question.images)
            videos = tuple(hold_clip(clip, question.picture) for clip in question.videos)
            question = replace(question, images=images, videos=videos)
            ticket = Ticket(lambda: self._inbox.put(lambda: self._scheduler.cancel(task, QuestionCancelled(CANCELLED))))
            meter = Meter()
            said = partial(self._tell, ticket, size)
            task = Task(answer(question, self._pair, ticket.put, meter), said, deadline, meter)
            with self._room:
                self._check_open()
                self._start_thread()
                # Under the lock: once it is closed, nothing follows in the inbox.
                self._inbox.put(partial(self._admit, task))
        except BaseException:
            self._leave(size)
            self._forget()
            raise
        return ticket

    def _enter(self, size: int, waits: bool, deadline: float | None) -> None:
        """Take room for a question. size: bytes that its pictures hold."""
        if size > self._picture_memory:
            raise RequestError(
                f"the question's pictures hold {size:,} bytes of memory, and those of all questions may hold "
                f"{self._picture_memory:,}; give fewer, or paths of files, which are opened one by one"
            )
        turn = object()
        with self._room:
            self._turns.append(turn)
            try:
                while not self._is_closed and not (self._has_room(size) and (not waits or self._turns[0] is turn)):
                    if not waits:
                        raise Overloaded(self._overload())
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise QuestionTimedOut(TIMED_OUT)
                    self._room.wait(waitable(left))
            finally:
                self._turns.remove(turn)
                self._room.notify_all()
            self._check_open()
            self._expected += 1
            self._untold += 1
            self._picture_bytes += size

    def _has_room(self, size: int) -> bool:
        return self._expected < self._most and self._picture_bytes + size <= self._picture_memory

    def _overload(self) -> str:
        again = "ask again later, or another server"
        if self._expected >= self._most:
            return f"{self._expected} questions are being answered or wait already; {again}"
        return (
            f"pictures of the {self._expected} questions that are being answered or wait hold {self._picture_bytes:,} "
            f"bytes of memory already, of {self._picture_memory:,}; {again}"
        )

    def _leave(self, size: int) -> None:
        with self._room:
            self._expected -= 1
            self._picture_bytes -= size
            self._room.notify_all()

    def _forget(self) -> None:
        with self._room:
            self._untold -= 1
            self._room.notify_all()

    def _check_open(self) -> None:
        """Raises EngineError."""
        if self._is_closed:
            raise EngineError("the pipeline was closed and answers no more questions; load another")

    def _admit(self, task: Task) -> None:
        try:
            if self._end is not None:
                raise self._end
            self._scheduler.submit(task)
        except EngineError as error:
            task.on_done(error)

    def _tell(self, ticket: Ticket, size: int, outcome: Outcome) -> None:
        if isinstance(outcome, EngineError):
            # With where it was raised, whoever keeps the error would keep the question's pictures.
            outcome.__traceback__ = outcome.__context__ = outcome.__cause__ = None
        self._leave(size)
        # Without the lock, and with room for another question: listeners may ask one.
        ticket.put(outcome)
        self._forget()

    def load(self) -> Load:
        """How busy it is, at some moment lately."""
        return self._scheduler.load()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new questions, wait for those that were asked -> whether all have ended."""
        self._check_process()
        with self._room:
            self._is_closed = True
            self._room.notify_all()
            return self._room.wait_for(lambda: not self._untold, waitable(timeout))

    def close(self) -> None:
        """Refuse new questions, end those that were asked, and the thread."""
        if os.getpid() != self._process:
            return  # the thread is the parent's, and its locks are as they were when it forked
        with self._room:
            self._is_closed = True
            self._room.notify_all()
        self._inbox.put(self._stop)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _stop(self) -> None:
        self._end = QuestionCancelled(CLOSED)
        self._scheduler.cancel_all(self._end)

    def _check_process(self) -> None:
        """Raises EngineError."""
        if os.getpid() != self._process:
            raise EngineError(
                f"the pipeline was loaded by process {self._process}, whose threads did not come along when it forked; "
                "load another in this process"
            )

    def _start_thread(self) -> None:
        """Raises ModelFailed."""
        if self._thread is None:
            # Not waited for when the interpreter ends: `close` is.
            thread = threading.Thread(target=self._run, name="sgl-loop", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise ModelFailed(f"no thread answers questions ({error}); ask again") from None
            self._thread = thread

    def _run(self) -> None:
        is_busy = False
        try:
            while self._end is None:
                self._take_word(is_busy)
                is_busy = self._scheduler.iterate()
        except BaseException as error:  # a fault of ours; nobody is to wait for ever
            LOG.critical("answering ended", exc_info=error)
            with self._room:
                self._is_closed = True
                self._room.notify_all()
            self._end = ModelFailed(f"answering ended ({error!r}); load the engine again")
            self._scheduler.cancel_all(self._end)
            while not self._inbox.empty():
                self._take_word(is_busy=True)

    def _take_word(self, is_busy: bool) -> None:
        """Some of what others left, without waiting if there is something to do."""
        due = self._scheduler.next_deadline()
        timeout = None if due is None else waitable(due - time.monotonic())
        with suppress(queue.Empty):
            self._inbox.get(block=not is_busy, timeout=timeout)()
            for _ in range(WORDS_AT_ONCE - 1):
                self._inbox.get_nowait()()

    def _outside(self, run: Callable[[], Any]) -> Future[Any]:
        try:
            future = self._pool.submit(run)
        except RuntimeError as error:  # as when the interpreter ends
            raise ModelFailed(f"no thread takes the question's pictures ({error}); ask again") from None
        future.add_done_callback(lambda _: self._inbox.put(_nothing))
        return future


def _nothing() -> None:
    """Word that there is something to look at."""
