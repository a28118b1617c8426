"""`sgl` as processes that are watched and killed: what a run holds by its journal, and who belongs to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engine.batch.answers import ANSWER, STATE, journal_of
from engine.batch.journal import decode

PATIENCE_SECONDS = 300.0
"""What never comes is given up then; a busy machine takes its time."""


def sgl(*words: object, ranks: int = 1) -> list[str]:
    """A command. ranks: 1 starts no mpiexec."""
    start = [Path(sys.executable).parent / "mpiexec", "-n", ranks] if ranks > 1 else []
    return [str(part) for part in (*start, sys.executable, "-m", "engine.cli", *words)]


class started:
    """A process with descendants, of which none is left behind."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        for process in [*descendants(self._process.pid), self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait(PATIENCE_SECONDS)


def wait_until_gone(process: subprocess.Popen[bytes], there: Sequence[int]) -> None:
    """With all that it started; a job ends by itself when a part of it was killed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None or any(map(is_running, there)):
        assert time.monotonic() < deadline, f"of {there} some are left"
        time.sleep(0.005)


def descendants(process: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [process]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def decodes(process: int) -> bool:
    """Whether it decodes pictures for a rank, which starts another one when it is gone."""
    return any(b"decoder_process" in word for word in _words(process))


def launches(process: int) -> bool:
    """Whether it starts and watches ranks, as mpiexec and its proxies do."""
    return any(name in _words(process)[0] for name in (b"mpiexec", b"hydra"))


def _words(process: int) -> list[bytes]:
    """Of its command line; one that is empty where it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers_in(output: Path) -> int:
    """How many lines a run has answered, by its journal."""
    return Watched(output).answers()


class Watched:
    """How many lines a run has answered, by what came to its journal since it was last looked at."""

    def __init__(self, output: Path) -> None:
        self._journal = journal_of(output)
        self._file, self._offset, self._count = 0, 0, 0

    def answers(self) -> int:
        with suppress(FileNotFoundError), self._journal.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset, self._count = status.st_ino, 0, 0
            file.seek(self._offset)
            for line in file:
                if (found := decode(line)) is None:
                    break
                if found[0] == STATE:
                    ranges = json.loads(found[1])["ranges"]
                    self._count += sum(ranges[1::2]) - sum(ranges[::2])
                self._count += found[0] == ANSWER
                self._offset += len(line)
        return self._count
