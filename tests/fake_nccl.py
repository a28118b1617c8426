"""The part of `nccl.core` (nccl4py) that our runtime calls, without NCCL: ranks meet in a directory named by their id.

Everything that happens is a line in the file `events` of `PLACE`.
"""

import ctypes
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

PLACE = Path(os.environ.get("FAKE_NCCL", tempfile.gettempdir()))
FAILING_RANK = int(os.environ.get("FAKE_NCCL_FAILING_RANK", -1))
"""Which cannot connect to the others, who wait for it."""
LIBRARY = None if "FAKE_NCCL_MISSING" in os.environ else SimpleNamespace(version="2.fake")


class NCCLError(Exception):
    pass


class Handle(ctypes.Structure):
    """What an `ncclComm_t` points to."""

    _fields_ = (("rank", ctypes.c_int), ("nranks", ctypes.c_int))


@dataclass(frozen=True)
class UniqueId:
    value: bytes

    def __bytes__(self) -> bytes:
        return self.value

    @staticmethod
    def from_bytes(value: bytes) -> "UniqueId":
        return UniqueId(value)


def get_version() -> SimpleNamespace:
    return SimpleNamespace(libnccl=LIBRARY)


def get_unique_id() -> UniqueId:
    unique_id = UniqueId(os.urandom(128))
    record(f"id {unique_id.value.hex()}")
    return unique_id


class Communicator:
    @classmethod
    def init(cls, nranks: int, rank: int, unique_id: UniqueId) -> "Communicator":
        record(f"init {rank} of {nranks} with {unique_id.value.hex()}")
        if rank == FAILING_RANK:
            raise NCCLError("UnhandledSystemError (2): unhandled system error")
        here = PLACE / unique_id.value.hex()[:16]
        here.mkdir(exist_ok=True)
        (here / str(rank)).touch()
        while len(list(here.iterdir())) < nranks:
            time.sleep(1e-3)
        communicator = cls()
        communicator._handle = Handle(rank, nranks)
        return communicator

    @property
    def ptr(self) -> int:
        return ctypes.addressof(self._handle)

    def destroy(self) -> None:
        record(f"destroy {self._handle.rank}")

    def abort(self) -> None:
        record(f"abort {self._handle.rank}")


def record(event: str) -> None:
    with (PLACE / "events").open("a") as events:
        events.write(event + "\n")
