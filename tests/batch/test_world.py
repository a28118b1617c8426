"""Messages between ranks, of an MPI that loses one: the others go on."""

from typing import Any

import pytest
from mpi4py import MPI

from engine.batch import world
from engine.batch.crew import Left, Work
from engine.batch.world import Bye, Link, MpiLeader, MpiPeers


class Request:
    def test(self) -> tuple[bool, None]:
        return True, None


class Message:
    def __init__(self, content: Any) -> None:
        self._content = content

    def recv(self) -> Any:
        return self._content


class Comm:
    """A world of four; what arrives is what a test has put there. An exception in it is raised."""

    size = 4

    def __init__(self, failed: list[int], *arriving: Any) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.unreachable: set[int] = set()
        self.arriving, self.failed = list(arriving), failed
        self.acknowledged = 0

    def improbe(self, source: int, tag: int, status: MPI.Status) -> Message | None:
        if not self.arriving:
            return None
        arrived = self.arriving.pop(0)
        if isinstance(arrived, Exception):
            raise arrived
        status.Set_source(arrived[0])
        return Message(arrived[1])

    def isend(self, message: Any, rank: int) -> Request:
        if rank in self.unreachable:
            raise MPI.Exception(MPI.ERR_OTHER)
        self.sent.append((rank, message))
        return Request()

    def Get_group(self) -> MPI.Group:
        return MPI.COMM_WORLD.Get_group()

    def Get_failed(self) -> list[int]:
        return self.failed

    def Ack_failed(self) -> None:
        self.acknowledged += 1


@pytest.fixture(autouse=True)
def translated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        @staticmethod
        def Translate_ranks(group: list[int], ranks: None, other: MPI.Group) -> list[int]:
            return group

    monkeypatch.setattr("engine.batch.world.MPI.Group", Group, raising=True)


def test_a_rank_that_died_is_told_once() -> None:
    error = MPI.Exception(MPI.ERR_OTHER)
    comm = Comm([2], (1, "first"), error, (3, "second"), error)
    peers = MpiPeers(Link(comm))  # type: ignore[arg-type]
    assert peers.size == 3
    assert peers.heard() == [(1, "first"), (2, Left("it died"))]
    assert comm.acknowledged == 1
    with pytest.raises(MPI.Exception):  # another trouble than that death
        peers.heard()
    assert peers.heard() == []


def test_a_rank_that_is_not_reached_has_left() -> None:
    comm = Comm([])
    peers = MpiPeers(Link(comm))  # type: ignore[arg-type]
    comm.unreachable.add(3)
    peers.send(3, Work(()))
    peers.send(1, Work((), (5,)))
    assert comm.sent == [(1, Work((), (5,)))]
    ((rank, said),) = peers.heard()
    assert rank == 3
    assert isinstance(said, Left)
    assert said.reason.startswith("MPI does not reach it")
    assert peers.heard() == []
    comm.arriving = [(1, Bye()), (2, Bye())]
    peers.end(0)
    assert comm.sent[1:] == [(1, None), (2, None)]


def test_a_rank_hears_nothing_behind_the_end() -> None:
    comm = Comm([], (0, Work(())), (0, None), (0, "never"))
    leader = MpiLeader(Link(comm))  # type: ignore[arg-type]
    assert leader.heard() == [Work(()), None]
    assert leader.heard() == []
    leader.wait_for_end()
    assert comm.sent == [(0, Bye())]


@pytest.mark.parametrize("says", ["nothing", "bye"])
def test_the_end_does_not_wait_for_who_is_silent(monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """MPI's own would, for ever; a rank that was left before is not spoken to any more."""
    ends: list[Any] = []
    monkeypatch.setattr(world.atexit, "register", lambda *call: ends.append(call))
    monkeypatch.setattr(world, "FAREWELL_SECONDS", 0.1)
    comm = Comm([], (1, Bye()), (3, Bye()), *([(2, Bye())] if says == "bye" else []))
    peers = MpiPeers(Link(comm))  # type: ignore[arg-type]
    peers.end(1)
    assert ends == ([] if says == "bye" else [(world.abort, 1)])
    comm.arriving = [(1, Bye()), (3, Bye())]
    peers.lose(2)
    comm.sent.clear()
    peers.send(2, Work(()))
    peers.end(1)
    assert comm.sent == [(1, None), (3, None)]
    assert ends[-1:] == [(world.abort, 1)]
