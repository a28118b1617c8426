"""Ranks of their own that a process starts when it needs them, and again when one of them died.

Never by MPI itself: a killed spawned rank would take its parent along. The group is `mpiexec` in a session of its own,
and rank 0 answers over a unix socket, so that a dead group is an end of file.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import engine
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.runtime.tensor_parallel import FIRST, Load, Message, Ranks, RanksDiedError, identify

ANSWER_SECONDS = 600.0
"""A call that takes longer is given up: a rank that was stopped, not killed, never ends the connection. Opening, which
takes what the disk takes, is given up when a rank has not worked for so long."""
START_SECONDS = 60.0
STOP_SECONDS = 3.0
EXCEPTION = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception)\b.*)$", re.MULTILINE)
ON_ONE_MACHINE = "self,posix,sysv,cma"
"""What UCX, below MPICH, may use between these ranks: memory. It would listen on the network otherwise."""
LAUNCHER_VARIABLES = ("PMI_", "PMIX_", "OMPI_", "HYDRA_", "MPI_LOCAL")
"""Of a launcher that started this process; the group has its own."""


class Group(Ranks):
    """The ranks of one engine directory on this machine. They end with this object, and with this process."""

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self._running: _Running | None = None
        self.epoch = 0

    def open(self, directory: Path, manifest: Manifest, threads: int, places: int) -> None:
        self._directory, self._world_size = directory, manifest.world_size
        self._load = Load(identify(manifest), threads, places)
        self._start()

    def do(self, message: Message) -> Any:
        if isinstance(message, FIRST) and self._running is not None:
            with suppress(RanksDiedError):  # most likely since the last message; a second death is told
                return self._ask(self._running, message)
        return self._ask(self._running or self._start(), message)

    def close(self) -> None:
        """End the ranks; the next call starts them again."""
        if self._running is not None:
            self._running.finalizer()
            self._running = None

    def process_ids(self) -> tuple[int, ...]:
        """Of the ranks that run now."""
        return self._running.ranks if self._running is not None else ()

    def _start(self) -> "_Running":
        running = _launch(self._directory, self._world_size)
        running.finalizer = weakref.finalize(self, running.stop)
        self._running = running
        self.epoch += 1
        self._ask(running, self._load)
        return running

    def _ask(self, running: "_Running", message: Message) -> Any:
        assert running.connection is not None
        try:
            running.connection.send(message)
            if not self._answers(running, message):
                raise TimeoutError(f"did not answer within {self._answer_seconds:g} s")
            outcome = running.connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            is_dead = not isinstance(error, TimeoutError)
            reason = f"died{running.last_words()}" if is_dead else str(error)
            raise (RanksDiedError if is_dead else EngineError)(
                f"a rank of {self._directory} {reason} during {_verb(message)}; ask again: the ranks are started anew"
            ) from None
        except BaseException:
            self.close()  # interrupted: what the ranks say next would answer another call
            raise
        if isinstance(outcome, EngineError):
            if isinstance(message, Load):
                self.close()
            raise outcome
        return outcome

    def _answers(self, running: "_Running", message: Message) -> bool:
        """Whether the ranks answer in time."""
        assert running.connection is not None
        before = running.ticks()
        while not running.connection.poll(self._answer_seconds):
            now = running.ticks()
            if not isinstance(message, Load) or any(new == old for new, old in zip(now, before, strict=True)):
                return False
            before = now
        return True


@dataclass
class _Running:
    """A started group. log: what its processes print; ranks: process ids."""

    process: subprocess.Popen[bytes]
    log: BinaryIO
    connection: Connection | None = None
    ranks: tuple[int, ...] = ()
    finalizer: Any = None

    def stop(self) -> None:
        """Let rank 0 see the end of its socket, then insist. mpiexec gives each rank a session of its own."""
        if self.connection is not None:
            self.connection.close()
        for end in (None, signal.SIGTERM, signal.SIGKILL):
            if end is not None:
                self._signal(end)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
                return

    def ticks(self) -> list[int]:
        """Of processor time that each rank has used; 0 where that cannot be known."""
        return [_ticks(rank) for rank in self.ranks]

    def last_words(self) -> str:
        """The last exception that a rank printed, in brackets; nothing if there was none."""
        self.log.seek(0)
        found = EXCEPTION.findall(self.log.read().decode(errors="replace"))
        return f" ({found[-1]})" if found else ""

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        for rank in self.ranks if number is signal.SIGKILL else ():
            with suppress(ProcessLookupError):
                os.kill(rank, number)


def _verb(message: Message) -> str:
    """A message in words, as in `open slot`."""
    return re.sub(r"(?<!^)([A-Z])", r" \1", type(message).__name__).lower()


def _launch(directory: Path, world_size: int) -> _Running:
    """Start mpiexec and wait until rank 0 has connected. Raises EngineError."""
    with tempfile.TemporaryDirectory(prefix="sgl-") as place, socket.socket(socket.AF_UNIX) as listener:
        path = f"{place}/socket"
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(0.05)
        log = (Path(place) / "log").open("a+b")
        program = [_python(), "-m", "engine.runtime.tensor_parallel_rank", str(directory.resolve()), path, log.name]
        process = subprocess.Popen(
            [_mpiexec(), "-n", str(world_size), *program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            start_new_session=True,
        )
        running = _Running(process, log)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(TimeoutError, EOFError):
                connection, _ = listener.accept()
                connection.setblocking(True)
                running.connection = Connection(connection.detach())
                running.ranks = tuple(running.connection.recv())
                return running
        running.stop()
        raise EngineError(
            f"mpiexec could not start {world_size} ranks of {directory}{running.last_words()}; see that it runs "
            f"`{' '.join(program[:3])}`"
        )


def _ticks(process: int) -> int:
    try:
        user, system = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return 0
    return int(user) + int(system)


def _environment() -> dict[str, str]:
    """This process's, for the package that runs now, wherever it was imported from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    return kept | {"PYTHONPATH": str(Path(engine.__file__).parents[1]), "UCX_TLS": ON_ONE_MACHINE}


def _python() -> str:
    """This environment's; in a server that embeds Python, `sys.executable` is the server."""
    return shutil.which("python3", path=f"{sys.prefix}/bin") or sys.executable


def _mpiexec() -> str:
    """Of this environment, else of the machine. Raises EngineError."""
    found = shutil.which("mpiexec", path=f"{sys.prefix}/bin") or shutil.which("mpiexec")
    if found is None:
        raise EngineError("mpiexec was not found; an engine of several ranks needs it: pip install 'sgl-engine[mpi]'")
    return found
