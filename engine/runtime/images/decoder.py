"""Processes that decode pictures apart: what no header bounds, time and memory from outside do."""

import atexit
import json
import os
import signal
import subprocess
import threading
from functools import cache
from types import ModuleType
from typing import BinaryIO, cast

import numpy
import PIL
from PIL import Image

import engine
from engine.config import PictureConfig
from engine.runtime.images import apart
from engine.runtime.images.formats import Format
from engine.runtime.images.limits import Budget, Unfit, check_size
from engine.runtime.images.stored import Stored

MOST = 4
"""Processes at once."""

LONGEST_REPLY = 4096
BUDGET = Budget()
PROGRAM = "engine.runtime.images.decoder_process"
NEEDED: tuple[ModuleType, ...] = (engine, PIL, numpy)
_first = threading.Lock()
"""Two threads that ask for the first time make one pool."""


def decode_apart(stored: Stored, format: Format, picture: PictureConfig) -> Image.Image:
    """As `decode`, within a Budget. Raises Unfit, EngineError."""
    with _first:
        pool = decoders()
    return pool.decode(stored, format, picture)


class Decoders:
    """Up to `most` processes, each started when it is first needed and kept for the next picture."""

    def __init__(self, most: int, budget: Budget = BUDGET, program: str = PROGRAM) -> None:
        self._budget, self._program = budget, program
        self._turns = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[Decoder] = []
        self._process = os.getpid()

    def decode(self, stored: Stored, format: Format, picture: PictureConfig) -> Image.Image:
        """Raises Unfit, EngineError."""
        with self._turns:
            with self._lock:
                decoder = self._idle.pop() if self._idle else None
            if decoder is None or not decoder.lives():
                decoder = Decoder.start(self._budget, self._program)
            try:
                return decoder.decode(stored, format, picture)
            finally:
                if decoder.fit:
                    with self._lock:
                        self._idle.append(decoder)
                else:
                    decoder.stop()

    def close(self) -> None:
        """End the processes that wait; those of a parent that forked are the parent's."""
        with self._lock:
            idle, self._idle = self._idle, []
        for decoder in idle if os.getpid() == self._process else ():
            decoder.stop()


@cache
def decoders() -> Decoders:
    """Of this process."""
    made = Decoders(min(MOST, len(os.sched_getaffinity(0))))
    atexit.register(made.close)
    os.register_at_fork(after_in_child=decoders.cache_clear)  # the pipes stay the parent's
    return made


class Decoder:
    """One process. fit: whether it waits for the next picture; false while it decodes."""

    def __init__(self, process: "subprocess.Popen[bytes]", budget: Budget) -> None:
        self._process, self._budget = process, budget
        self.fit = True

    @classmethod
    def start(cls, budget: Budget, program: str) -> "Decoder":
        """Raises EngineError."""
        modules = (str(module.__file__) for module in NEEDED)
        process = apart.start(program, (budget.seconds, budget.bytes), modules)
        return cls(process, budget)

    def lives(self) -> bool:
        return self._process.poll() is None

    def decode(self, stored: Stored, format: Format, picture: PictureConfig) -> Image.Image:
        """Raises Unfit."""
        self.fit = False
        watch = threading.Timer(self._budget.patience, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            return self._ask(stored, format, picture)
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            raise Unfit(self._end()) from None
        finally:
            watch.cancel()

    def stop(self) -> None:
        apart.stop(self._process)

    def _ask(self, stored: Stored, format: Format, picture: PictureConfig) -> Image.Image:
        """Raises Unfit, and whatever comes of a process that has ended or makes no sense."""
        requests, replies = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        request = {
            "bytes": stored.size,
            "format": format,
            "auto_orient": picture.auto_orient,
            "background": picture.background,
        }
        requests.write(json.dumps(request).encode() + b"\n")
        for block in stored.blocks(0):
            requests.write(block)
        requests.flush()
        line = replies.readline(LONGEST_REPLY)
        if not line:
            raise EOFError
        reply = json.loads(line)
        if "refused" in reply:
            self.fit = not reply["ends"]
            raise Unfit(reply["refused"])
        width, height = map(int, reply["size"])
        check_size(width, height)
        image = apart.receive_pixels(replies, width, height)
        self.fit = True
        return image

    def _end(self) -> str:
        """Why the process ended, as the sentence that the picture's name begins."""
        status = apart.status_of(self._process)
        if status == -signal.SIGXCPU:
            return f"takes more than {self._budget.seconds} seconds to decode; convert it to PNG or JPEG"
        if status == -signal.SIGKILL:
            return "takes more time or memory to decode than a picture may; convert it to PNG or JPEG"
        return "cannot be decoded (its decoder crashed); it is damaged"
