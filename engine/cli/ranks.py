"""A command that answers many questions: in this process, or on every rank that mpiexec started."""

import argparse
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from engine.batch.crew import Alone, Failed, Left, Peers, follow
from engine.batch.share import Machine
from engine.batch.terms import Reader, RunFailed
from engine.batch.worker import Worker
from engine.cli.ask import import_mpi
from engine.cli.command_line import read_device
from engine.config import ServingConfig
from engine.engine_directory import read_manifest
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.runtime.loading import gpus_of, kv_memory_here, resolve_device
from engine.runtime.pipeline import SglPipeline
from engine.runtime.tensor_parallel import identify, started_by_mpiexec
from engine.target import Device

MakeReader = Callable[[Manifest, int], Reader[Any]]
"""From the engine's manifest, and when the run began, in seconds since 1970."""


def on_ranks(
    arguments: argparse.Namespace,
    lead: Callable[[Peers, Machine | None], None],
    make_reader: MakeReader,
) -> None:
    """Run `lead` as rank 0, or alone; as another rank, answer for it what `make_reader` reads. Raises EngineError."""
    if not started_by_mpiexec():
        lead(Alone(), None)
        return
    world = import_mpi("engine.batch.world")
    with world.entered() as (link, machine):
        if isinstance(link, world.MpiPeers):
            lead(link, machine)
        else:
            _serve(arguments, link, machine, make_reader)


@contextmanager
def open_worker(
    arguments: argparse.Namespace, manifest: Manifest, reader: Reader[Any], machine: Machine | None
) -> Iterator[Worker]:
    """With the engine, on its share of the machine. Raises EngineError."""
    serving = {name: getattr(arguments, name, default) for name, default in vars(ServingConfig()).items()}
    device = resolve_device(arguments.engine, manifest, read_device(arguments))
    if machine is not None:
        machine.take_cores()
        if device is Device.CUDA:
            machine.take_gpus(gpus_of(manifest, serving["small_apart"]))
        if serving["kv_memory"] is None and (memory := kv_memory_here(device)) is not None:
            serving["kv_memory"] = memory // machine.size
    with ExitStack() as stack:
        pipeline = stack.enter_context(
            SglPipeline.load(arguments.engine, arguments.threads, preload=False, device=device, **serving)
        )
        yield stack.enter_context(Worker(pipeline, reader))


def _serve(arguments: argparse.Namespace, leader: Any, machine: Machine, make_reader: MakeReader) -> None:
    """What is wrong, rank 0 says."""
    if (started := leader.begin()) is None:
        return
    try:
        manifest = read_manifest(arguments.engine)
        reader = make_reader(manifest, started)
        with open_worker(arguments, manifest, reader, machine) as worker:
            follow(leader, worker, identify(manifest), socket.gethostname(), reader.agreed())
    except RunFailed as error:
        leader.send(Failed(str(error)))
    except EngineError as error:
        leader.send(Left(str(error)))
    except Exception as error:  # what it had goes to others, who may not have the same trouble
        traceback.print_exc()
        leader.send(Left(repr(error)))
