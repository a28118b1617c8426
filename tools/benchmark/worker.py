"""A process of its own for each thing that is measured, which sleeps between commands."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

CLOSE_SECONDS = 10


class WorkerError(RuntimeError):
    """A process that could not do what it was asked; the message is its error's."""


@dataclass(frozen=True)
class Reply:
    """seconds: of the call itself. idle_cpu_seconds: that the process burnt between its last call and this one."""

    result: Any
    seconds: float
    idle_cpu_seconds: float


class Worker:
    """Calls methods of what `load` returns in a fresh process. Raises WorkerError."""

    def __init__(self, load: Callable[[], Any]) -> None:
        # spawn: a fork would share this process's memory and thread pools.
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(load, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: Any, **named: Any) -> Reply:
        """Call a method there and wait for its result."""
        self._connection.send((method, arguments, named))
        return self._receive()

    def close(self) -> None:
        self._connection.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _receive(self) -> Reply:
        try:
            reply = self._connection.recv()
        except EOFError:
            self.close()
            raise WorkerError(f"the process ended with exit status {self._process.exitcode}") from None
        if isinstance(reply, Reply):
            return reply
        self.close()
        raise WorkerError(reply)


def _serve(load: Callable[[], Any], connection: Connection) -> None:
    """The other process: load, then answer until the pipe is closed."""
    try:
        subject = load()
        cpu = time.process_time()
        connection.send(Reply(None, 0.0, 0.0))
        while True:
            method, arguments, named = connection.recv()
            idle = time.process_time() - cpu
            start = time.perf_counter()
            result = getattr(subject, method)(*arguments, **named)
            seconds = time.perf_counter() - start
            cpu = time.process_time()
            connection.send(Reply(result, seconds, idle))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {error}")
