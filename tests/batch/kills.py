"""`sgl batch` as processes that are killed at chosen moments: when so many answers are in the journal."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.batch.answers import ANSWER, STATE, journal_of
from engine.batch.journal import decode

PATIENCE_SECONDS = 300.0
"""What never comes is given up then; a busy machine takes its time."""
CREATED = '"created": '


@dataclass
class Killed:
    """A run that is killed again and again. kills: what was killed, after how many answers."""

    command: Sequence[str]
    output: Path
    kills: list[tuple[str, int]] = field(default_factory=list)

    def kill_once(self, chance: random.Random, questions: int) -> bool:
        """Start it, and kill it somewhere; whether it was still running then."""
        held = answers_in(self.output)
        wanted = chance.randint(held + 1, min(questions, held + max(2, questions // 10)))
        with started(self.command) as process:
            while process.poll() is None and answers_in(self.output) < wanted:
                time.sleep(0.002)
            victims = choose(process.pid, chance)
            was_running = process.poll() is None
            for victim in victims:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            wait_until_gone(process)
        if was_running:
            self.kills.append(("everything" if len(victims) > 1 else "one", wanted))
        return was_running

    def finish(self) -> dict[str, Any]:
        """Let it run to its end -> its summary."""
        done = subprocess.run([*self.command, "--json"], capture_output=True, text=True, timeout=PATIENCE_SECONDS * 4)
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary


def command(engine: Path, questions: Path, output: Path, ranks: int, *options: object) -> list[str]:
    """ranks: 1 starts no mpiexec."""
    sgl = [sys.executable, "-m", "engine.cli", "batch", engine, "--input", questions, "--output", output, *options]
    start = [Path(sys.executable).parent / "mpiexec", "-n", ranks] if ranks > 1 else []
    return [str(part) for part in (*start, *sgl)]


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


def choose(process: int, chance: random.Random) -> list[int]:
    """One process of a job without which it ends, or all of them."""
    there = [process, *(child for child in descendants(process) if not decodes(child))]
    return there if chance.random() < 0.5 else [chance.choice(there)]


def wait_until_gone(process: subprocess.Popen[bytes]) -> None:
    """With all that it started; a job ends by itself when a part of it was killed."""
    there, deadline = descendants(process.pid), time.monotonic() + PATIENCE_SECONDS
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
    try:
        return b"decoder_process" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers_in(output: Path) -> int:
    """How many lines a run has answered, by its journal."""
    count = 0
    with suppress(FileNotFoundError), journal_of(output).open("rb") as file:
        for line in file:
            if (found := decode(line)) is None:
                break
            if found[0] == STATE:
                ranges = json.loads(found[1])["ranges"]
                count += sum(ranges[1::2]) - sum(ranges[::2])
            count += found[0] == ANSWER
    return count


def without_time(output: Path) -> list[str]:
    """The answers; of OpenAI's form without when they were made."""
    return [drop_time(line) for line in output.read_text(encoding="utf-8").splitlines()]


def drop_time(line: str) -> str:
    head, created, tail = line.partition(CREATED)
    return head + tail.partition(",")[2] if created else line
