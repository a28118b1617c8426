"""Ranks of their own that a process starts when it needs them, and again when one of them died.

Never by MPI itself: a killed spawned rank would take its parent along. The group is `mpiexec` in a session of its own,
and rank 0 answers over a unix socket, so that a dead group is an end of file.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import engine
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.runtime.tensor_parallel import FIRST, Message, OpenShare, Ranks, RanksDiedError, identify

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


class GivenUpError(RanksDiedError):
    """Ranks that did not answer in time; told at once, as new ones might take as long."""


class Group(Ranks):
    """The ranks of one engine directory on this machine. They end with this object, and with this process.

    One thread says messages; any may close the group meanwhile.
    """

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self._started: list[_Running] = []
        """Those that run now: none, or one."""
        self.epoch, self.death = 0, ""
        self.end = weakref.finalize(self, _stop_all, self._started, os.getpid())
        """End the ranks for good; also at the interpreter's end, after what was made later, such as whoever asks."""

    def open(self, directory: Path, manifest: Manifest, threads: int, places: int) -> None:
        self._directory, self._world_size = directory, manifest.world_size
        self._load = OpenShare(identify(manifest), threads, places)
        self._start()

    def do(self, message: Message) -> Any:
        running = self._running()
        if not isinstance(message, FIRST):
            if running is None:
                raise RanksDiedError(self.death)
            return self._ask(running, message)
        if running is not None:
            try:
                return self._ask(running, message)
            except GivenUpError:
                raise
            except RanksDiedError:
                pass  # most likely since the last message; a second death is told
        return self._ask(self._start(), message)

    def close(self) -> None:
        """End the ranks; the next question starts them again."""
        if (running := self._running()) is not None:
            self._close(running, f"the ranks of {self._directory} were closed; ask again: they are started anew")

    def process_ids(self) -> tuple[int, ...]:
        """Of the ranks that run now."""
        return tuple(rank for running in self._started for rank in running.ranks)

    def _running(self) -> "_Running | None":
        return next(iter(self._started), None)

    def _close(self, running: "_Running", death: str) -> None:
        """End these ranks, unless somebody else did."""
        with suppress(ValueError):
            self._started.remove(running)
            self.epoch, self.death = self.epoch + 1, death
        running.stop()

    def _start(self) -> "_Running":
        running = _launch(self._directory, self._world_size)
        self._started.append(running)
        if not self.end.alive:
            _stop_all(self._started, os.getpid())
            raise RanksDiedError(f"the ranks of {self._directory} have ended with who asked them; open them again")
        self._ask(running, self._load)
        return running

    def _ask(self, running: "_Running", message: Message) -> Any:
        try:
            running.connection.send(message)
            if not self._answers(running, message):
                raise TimeoutError(f"did not answer within {self._answer_seconds:g} s")
            outcome = running.connection.recv()
        except (EOFError, OSError) as error:
            is_dead = not isinstance(error, TimeoutError)
            running.stop()  # then everything is in the log
            reason = f"died{running.last_words()}" if is_dead else str(error)
            sentence = f"a rank of {self._directory} {reason} during {_verb(message)}"
            self._close(running, f"{sentence}; ask again: the ranks are started anew")
            raise (RanksDiedError if is_dead else GivenUpError)(self.death) from None
        except BaseException:
            self.close()  # interrupted: what the ranks say next would answer another call
            raise
        if isinstance(outcome, EngineError):
            if isinstance(message, OpenShare):
                self._close(running, str(outcome))
            raise outcome
        return outcome

    def _answers(self, running: "_Running", message: Message) -> bool:
        """Whether the ranks answer in time."""
        before = running.ticks()
        while not running.connection.poll(self._answer_seconds):
            now = running.ticks()
            if not isinstance(message, OpenShare) or any(new == old for new, old in zip(now, before, strict=True)):
                return False
            before = now
        return True


@dataclass(frozen=True, eq=False)
class _Running:
    """A started group. log: what its processes print; channel: to rank 0, as is the connection; ranks: process ids."""

    process: subprocess.Popen[bytes]
    log: BinaryIO
    channel: socket.socket
    connection: Connection
    ranks: tuple[int, ...]

    def stop(self) -> None:
        """Let rank 0 see the end of its socket, as does who waits for an answer here, then insist."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        _stop(self.process, self.ranks)

    def ticks(self) -> list[int]:
        """Of processor time that each rank has used; 0 where that cannot be known."""
        return [_ticks(rank) for rank in self.ranks]

    def last_words(self) -> str:
        """See `_last_words`."""
        return _last_words(self.log)


def _stop_all(started: list[_Running], process: int) -> None:
    """In the process that started them: one that it forked has their sockets, too."""
    while started and os.getpid() == process:
        started.pop().stop()


def _stop(process: subprocess.Popen[bytes], ranks: Sequence[int] = ()) -> None:
    """Wait for the end of a group, and insist. mpiexec gives each rank a session of its own."""
    for end in (None, signal.SIGTERM, signal.SIGKILL):
        if end is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, end)
        for rank in ranks if end is signal.SIGKILL else ():
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return


def _last_words(log: BinaryIO) -> str:
    """The last exception that a rank printed, in brackets; nothing if there was none."""
    log.seek(0)
    found = EXCEPTION.findall(log.read().decode(errors="replace"))
    return f" ({found[-1]})" if found else ""


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
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(TimeoutError, EOFError):
                    channel, _ = listener.accept()
                    channel.setblocking(True)
                    connection = Connection(os.dup(channel.fileno()))
                    return _Running(process, log, channel, connection, tuple(connection.recv()))
        except BaseException:  # interrupted
            _stop(process)
            raise
        _stop(process)
        raise EngineError(
            f"mpiexec could not start {world_size} ranks of {directory}{_last_words(log)}; see that it runs "
            f"`{shlex.join(program[:3])}`"
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
