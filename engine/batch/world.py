"""The ranks that one `mpiexec` started: messages between rank 0 and the others."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from mpi4py import MPI

from engine.batch.crew import LEADER, LONGEST_PAUSE, Left, Said, Work
from engine.batch.hearing import Hearing
from engine.batch.share import Machine
from engine.runtime.tensor_parallel_rank import forget_segments, refuse_other_mpi

FAREWELL_SECONDS = 20.0
"""For the others to hear that all is over; MPI's own end would wait for ever for one that died."""


class Bye(NamedTuple):
    """What a rank says last."""


class Link:
    """Messages that are sent without waiting until they are received: two ranks that send to each other never stand
    still."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm
        self._sending: list[MPI.Request] = []
        self._died: set[int] = set()

    def post(self, rank: int, message: Any) -> None:
        self._sending = [request for request in self._sending if not request.test()[0]]
        self._sending.append(self.comm.isend(message, rank))

    def next(self) -> tuple[int, Any] | None:
        """The next message, and who sent it; None if there is none now."""
        status = MPI.Status()
        message = self.comm.improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        return None if message is None else (status.source, message.recv())

    def acknowledge(self) -> list[int]:
        """Ranks that died, where the MPI lets the others live; from now on messages of any rank are those of others."""
        failed = self.comm.Get_failed()
        self.comm.Ack_failed()
        died = set(MPI.Group.Translate_ranks(failed, None, self.comm.Get_group())) - self._died
        self._died |= died
        return sorted(died)


class MpiPeers:
    """`crew.Peers` over MPI."""

    def __init__(self, link: Link) -> None:
        self._link, self.size = link, link.comm.size - 1
        self._lost: dict[int, str] = {}
        self._silent: set[int] = set()

    def begin(self, started: int) -> None:
        for rank in range(1, self.size + 1):
            self._post(rank, started)

    def heard(self) -> list[tuple[int, Said]]:
        heard: list[tuple[int, Said]] = [(rank, Left(reason)) for rank, reason in self._lost.items()]
        self._lost.clear()
        try:
            while (found := self._link.next()) is not None:
                heard.append(found)
        except MPI.Exception:
            if not (died := self._link.acknowledge()):
                raise
            heard += [(rank, Left("it died")) for rank in died]
        return heard

    def send(self, rank: int, work: Work) -> None:
        if rank not in self._silent:
            self._post(rank, work)

    def _post(self, rank: int, message: Work | int | None) -> None:
        try:
            self._link.post(rank, message)
        except MPI.Exception as error:
            self._lost[rank] = f"MPI does not reach it ({error})"

    def lose(self, rank: int) -> None:
        self._silent.add(rank)

    def end(self, status: int) -> None:
        """Rank 0's last word. Where not all of the others answer it, this process ends without them, with this exit
        status."""
        others = set(range(1, self.size + 1)) - self._silent
        for rank in others:
            self._post(rank, None)
        others -= self._lost.keys()
        left, deadline = set(others), time.monotonic() + FAREWELL_SECONDS
        while left and time.monotonic() < deadline:
            heard = self.heard()
            left -= {rank for rank, said in heard if isinstance(said, Bye | Left)}
            if not heard:
                time.sleep(LONGEST_PAUSE)
        if silent := sorted(left | self._silent):
            ranks = ", ".join(map(str, silent))
            print(f"the job ends without rank {ranks}, which says nothing", file=sys.stderr, flush=True)
            atexit.register(abort, status)


class MpiLeader:
    """`crew.Leader` over MPI."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.has_ended = False

    def begin(self) -> int | None:
        """When the run began, once rank 0 says so; None where it ended instead."""
        while (found := self._link.next()) is None:
            time.sleep(LONGEST_PAUSE)
        self.has_ended = found[1] is None
        started: int | None = found[1]
        return started

    def heard(self) -> list[Work | None]:
        heard: list[Work | None] = []
        while not self.has_ended and (found := self._link.next()) is not None:
            heard.append(found[1])
            self.has_ended = found[1] is None
        return heard

    def send(self, said: Said) -> None:
        self._link.post(LEADER, said)

    def wait_for_end(self) -> None:
        """Sleeping, as MPI itself would wait on a busy core."""
        hearing = Hearing()
        while not self.has_ended:
            time.sleep(LONGEST_PAUSE)
            hearing.listen()
            if self.heard():
                hearing.hear(LEADER)
            elif hearing.silent():
                self.lose()
        self._link.post(LEADER, Bye())

    def lose(self) -> NoReturn:
        print("rank 0 has fallen silent; the same command continues", file=sys.stderr)
        abort(1)


def abort(status: int) -> NoReturn:
    """End the job, whoever has died or stands still: MPI's own end waits for all."""
    sys.stdout.flush()
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(status)
    time.sleep(FAREWELL_SECONDS)  # MPICH only asks mpiexec for the end, which then comes
    os._exit(status)


@contextmanager
def entered() -> Iterator[tuple[MpiPeers | MpiLeader, Machine]]:
    """Among the ranks, as rank 0 or another one; its part ends with this. Ctrl-C, which all of them get, is rank 0's.
    Raises EngineError when they do not see each other."""
    refuse_other_mpi()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    world = MPI.COMM_WORLD.Dup()
    forget_segments(world)
    machine = world.Split_type(MPI.COMM_TYPE_SHARED)
    cores = machine.allgather(tuple(sorted(os.sched_getaffinity(0))))
    share = Machine(machine.rank, tuple(cores))
    link = Link(world)
    if world.rank != LEADER:
        leader = MpiLeader(link)
        try:
            yield leader, share
        finally:
            leader.wait_for_end()
        return
    peers = MpiPeers(link)
    signal.signal(signal.SIGINT, handler)
    try:
        yield peers, share
    except BaseException:
        peers.end(1)
        raise
    peers.end(0)
