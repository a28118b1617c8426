"""Ranks that MPI links: one leads, the others do what it says; `python -m` runs the ranks of a `Group`."""

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Client
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from mpi4py import MPI

from engine.engine_directory import read_manifest
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.runtime.tensor_parallel import (
    AgreedError,
    Message,
    OpenShare,
    Ranks,
    RanksDiedError,
    announced_sizes,
    identify,
    started_by_mpiexec,
)
from engine.runtime.tensor_parallel_model import RankModel, refuse_other_size

COMMAND = 1
"""Tag of what announces a message."""
STOP_SECONDS = 3.0
"""For the message that is being done when the leader stops."""
ORPHAN_SECONDS = 10
"""For ranks to end after whoever asked them."""
SHORTEST_PAUSE, LONGEST_PAUSE = 1e-5, 5e-3
"""Seconds between two looks for a command, longer and longer. MPI itself would look all the time, on a busy core."""


class World(Ranks):
    """The ranks that one `mpiexec` started, this process among them."""

    epoch, death = 0, ""

    def __init__(self, world: MPI.Comm, rank: RankModel, process_ids: list[int]) -> None:
        """process_ids: by rank."""
        self._world, self._rank, self.process_ids = world, rank, process_ids
        self._speaking, self._has_stopped = Lock(), False
        """One message at a time, whichever thread has it."""

    @classmethod
    def meet(cls, directory: Path, world: MPI.Comm = MPI.COMM_WORLD) -> "World":
        """Wait until all ranks are here."""
        forget_segments(world)
        return cls(world, RankModel(world, directory), world.allgather(os.getpid()))

    def is_leader(self) -> bool:
        return bool(self._world.rank == 0)

    def open(self, directory: Path, manifest: Manifest, threads: int, places: int) -> None:
        self.do(OpenShare(identify(manifest), threads, places))

    def do(self, message: Message) -> Any:
        with self._speaking:
            if self._has_stopped:
                raise RanksDiedError("the ranks have ended with the command that mpiexec started; start it again")
            self._announce(message)
            return self._do(message)

    def stop(self, status: int = 1) -> None:
        """The leader's last word. A message that is still being done then, and goes on for long, ends all ranks.

        They end with that status when this process has said what it has to say.
        """
        if not self._speaking.acquire(timeout=STOP_SECONDS):
            atexit.register(self._abort, status)
            return
        try:
            self._has_stopped = True
            self._announce(None)
            self._rank.close()
        finally:
            self._speaking.release()

    def serve(self) -> None:
        """What the other ranks do until the leader stops them."""
        while True:
            self._wait()
            message: Message | None = self._world.bcast(None)
            if message is None:
                self._rank.close()
                return
            with suppress(AgreedError):  # the leader has the same one and says it
                self._do(message)

    def _do(self, message: Message) -> Any:
        try:
            return message.on(self._rank)
        except AgreedError:
            raise
        except BaseException as error:
            # The others may wait for this rank in a sum; nothing but the end of all of them frees them.
            if not isinstance(error, KeyboardInterrupt):
                traceback.print_exc()
                sys.stderr.flush()
            self._abort()

    def _abort(self, status: int = 1) -> NoReturn:
        """End all ranks."""
        self._rank.abort()
        self._world.Abort(status)
        os._exit(status)  # MPICH may return from there

    def _announce(self, message: Message | None) -> None:
        for rank in range(1, self._world.size):
            self._world.send(None, rank, COMMAND)
        self._world.bcast(message)

    def _wait(self) -> None:
        pause = SHORTEST_PAUSE
        while not self._world.iprobe(0, COMMAND):
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)
        self._world.recv(source=0, tag=COMMAND)


def with_ranks(directory: Path, lead: Callable[[Ranks], None]) -> None:
    """Started by mpiexec: rank 0 leads, the others serve it. Ctrl-C, which all of them get, is the leader's.

    Raises EngineError when there are more or fewer than the engine was built for, or they do not see each other.
    """
    refuse_other_mpi()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # until they have met: one that left would be waited for
    world = World.meet(directory)
    if not world.is_leader():
        world.serve()
        return
    status = 1
    try:
        signal.signal(signal.SIGINT, handler)
        refuse_other_size(directory, read_manifest(directory), MPI.COMM_WORLD.size)
        lead(world)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT  # as a shell says it
        raise
    finally:
        world.stop(status)


def refuse_other_mpi() -> None:
    """Raises EngineError when the processes that mpiexec started do not see each other."""
    if MPI.COMM_WORLD.size not in (sizes := announced_sizes()):
        raise EngineError(
            f"mpiexec started {max(sizes)} processes, and mpi4py sees {MPI.COMM_WORLD.size}: they are of different "
            f"MPIs; use the mpiexec of this Python environment ({sys.prefix}/bin)"
        )


def forget_segments(world: MPI.Comm) -> None:
    """Unlink MPICH's shared memory once every rank has mapped it: a killed rank then leaves nothing in /dev/shm."""
    world.Barrier()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if "/dev/shm/mpich_shm_" in line and "(deleted)" not in line:
            Path(line.split()[-1]).unlink(missing_ok=True)


def main(directory: str, socket: str, log: str) -> int:
    """A rank of a `Group`: rank 0 takes calls from the socket until it closes. What a rank prints goes to the log."""
    with open(log, "ab") as file:  # not by way of mpiexec, which may drop a rank's last words when it aborts
        os.dup2(file.fileno(), sys.stderr.fileno())
    world = World.meet(Path(directory))
    if not world.is_leader():
        world.serve()
        return 0
    with Client(socket, family="AF_UNIX") as connection:
        try:
            connection.send(world.process_ids)
            while True:
                message: Message = connection.recv()
                try:
                    outcome = world.do(message)
                except AgreedError as error:
                    outcome = error
                connection.send(outcome)
        except (EOFError, OSError):  # whoever asked has gone
            signal.alarm(ORPHAN_SECONDS)  # ends this process, and with it all, whatever it waits for
            world.stop()
    return 0


if __name__ == "__main__":
    assert started_by_mpiexec()
    sys.exit(main(*sys.argv[1:]))
