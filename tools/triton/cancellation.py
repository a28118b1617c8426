"""Passing a cancellation on to a model that this one called, where the server does not: a file as the flag.

All models of a server run on one machine. The caller names a token in its request and creates the token's file once
its own client has gone; the callee looks for the file once per token.
"""

import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from engine.runtime.generate import IsCancelled

from engine.errors import RequestError

POLL_SECONDS = 0.02
TOKEN = re.compile(r"[0-9a-f]{32}")


def flag(token: str) -> Path:
    """The file that says that a token is cancelled. Raises RequestError for what is no token."""
    if not TOKEN.fullmatch(token):
        raise RequestError(f"cancel_token {token[:40]!r} is not 32 hexadecimal digits")
    return Path(tempfile.gettempdir()) / f"sgl-cancelled-{os.getuid()}-{token}"


class Watcher:
    """Watches the clients of questions in progress and raises the flags of those that have gone."""

    def __init__(self) -> None:
        self._watched: dict[str, IsCancelled] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def watch(self, is_cancelled: IsCancelled) -> tuple[str, Callable[[], None]]:
        """A token for the question, and what ends the watch."""
        token = uuid.uuid4().hex
        with self._changed:
            self._watched[token] = is_cancelled
            self._changed.notify()

        def end() -> None:
            with self._changed:
                self._watched.pop(token, None)
                flag(token).unlink(missing_ok=True)

        return token, end

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._watched))
                for token, is_cancelled in self._watched.items():
                    if is_cancelled():
                        flag(token).touch()
            time.sleep(POLL_SECONDS)
