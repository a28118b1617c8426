"""Steps that all ranks take at once: an error of one is an error of all, and nobody waits for a rank that failed."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from mpi4py import MPI

from engine.errors import EngineError
from engine.runtime.tensor_parallel import AgreedError

Made = TypeVar("Made")
FAILED = 2
"""Tag of the message of a rank that failed while others may wait for it."""
WAIT_SECONDS = 600.0
"""For ranks to meet in a library, which all of them enter at the same time."""
PAUSE = 1e-3
"""Seconds between two looks for such a message."""


def on_all(world: MPI.Comm, step: Callable[[], Made]) -> Made:
    """What the step, which waits for no other rank, made here. Raises AgreedError on all when one has EngineError."""
    made = error = None
    try:
        made = step()
    except EngineError as problem:
        error = f"rank {world.rank} on {MPI.Get_processor_name()}: {problem}"
    if errors := [said for said in world.allgather(error) if said is not None]:
        raise AgreedError(errors[0])
    return made  # type: ignore[return-value]


def on_all_waiting(world: MPI.Comm, step: Callable[[], Made]) -> Made:
    """Like `on_all`, of a step in which ranks wait for each other in a library.

    It runs in a thread. When it fails on one rank, those of the others that wait are left behind.
    """

    def watched() -> Made:
        outcome: Future[Made] = Future()
        Thread(target=_settle, args=(outcome, step), daemon=True).start()
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            while not outcome.done():
                if world.iprobe(MPI.ANY_SOURCE, FAILED):
                    return None  # type: ignore[return-value] # the other rank says why
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the other ranks did not come within {WAIT_SECONDS:g} s; see that they are alive"
                    )
                time.sleep(PAUSE)
            return outcome.result()
        except EngineError:
            for rank in range(world.size):
                if rank != world.rank:
                    world.send(None, rank, FAILED)
            raise

    try:
        return on_all(world, watched)
    finally:
        while world.iprobe(MPI.ANY_SOURCE, FAILED):
            world.recv(source=MPI.ANY_SOURCE, tag=FAILED)


def _settle(outcome: Future[Made], step: Callable[[], Made]) -> None:
    try:
        outcome.set_result(step())
    except BaseException as error:
        outcome.set_exception(error)
