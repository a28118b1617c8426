"""One rank's share of a tensor-parallel model, linked to the others by MPI."""

import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from engine.build_flags import BuildFlag
from engine.engine_directory import read_manifest
from engine.errors import ManifestError
from engine.manifest import Manifest
from engine.parallel import SHARDED, Shard
from engine.runtime.arrays import Array, to_host
from engine.runtime.executor import CollectiveExecutor, Executor
from engine.runtime.language import LanguageModel
from engine.runtime.loading import load, load_rank, load_scoring, share_threads, take_device
from engine.runtime.prompt import Need
from engine.runtime.tensor_parallel import AgreedError, Identity, identify
from engine.runtime.tensor_parallel_step import on_all, on_all_waiting
from engine.runtime.vision import VisionEncoder
from engine.verification import verify

if TYPE_CHECKING:
    from engine.runtime.communicator import Communicator

ABORT_SECONDS = 1.0
"""For a GPU to leave a sum; then its process ends anyway."""


class RankModel:
    """A share of a model. All ranks do the same messages; rank 0's results count."""

    def __init__(self, world: MPI.Comm, directory: Path) -> None:
        self._world, self._directory = world, directory
        self._communicator: Communicator | None = None
        self._seconds_in_sums = 0.0

    def load(self, expected: Identity, threads: int, places: int) -> None:
        """Open this rank's share, if all ranks fit together. Raises EngineError on all ranks."""
        machine = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        executor = on_all(self._world, lambda: self._load(expected, threads, places, machine))
        if isinstance(executor, CollectiveExecutor):
            self._connect(executor, gpu=machine.rank)

    def close(self) -> None:
        """Let go of the other ranks; all of them do."""
        if self._communicator is not None:
            del self.language  # contexts of plans end before their communicator
            self._communicator.destroy()
            self._communicator = None

    def abort(self) -> None:
        """After a failure: this rank's GPU may be in the middle of a sum that the others never join."""
        if self._communicator is not None:
            thread = Thread(target=self._communicator.abort, daemon=True)
            thread.start()
            thread.join(ABORT_SECONDS)

    def open(self, need: Need) -> int:
        """Like `Language.open`: a slot of the same number on all ranks, or none on any."""
        opened: list[int] = []
        try:
            on_all(self._world, lambda: opened.append(self.language.open(need)))
        except AgreedError:
            for slot in opened:
                self.language.close(slot)
            raise
        return opened[0]

    def truncate(self, slot: int, length: int) -> None:
        """Like `Language.truncate`; after an AgreedError the slot is good for nothing but to be closed."""
        on_all(self._world, lambda: self.language.truncate(slot, length))

    def save(self, slot: int, start: int, stop: int) -> int:
        """Like `Language.save`: rows of the same number on all ranks, or none on any."""
        saved: list[int] = []
        try:
            on_all(self._world, lambda: saved.append(self.language.save(slot, start, stop)))
        except AgreedError:
            for number in saved:
                self.language.forget(number)
            raise
        return saved[0]

    def visual_scores(self, slot: int) -> np.ndarray:
        scores = on_all(self._world, lambda: np.array(to_host(self.language.visual_scores(slot))))
        if self.language.scoring is not None:  # else the plan has summed
            self._sum(scores)
        return scores

    def value_norms(self, slot: int) -> np.ndarray:
        """Of all ranks' heads: each has as many."""
        norms = on_all(self._world, lambda: np.array(to_host(self.language.value_norms(slot))))
        self._sum(norms)
        return norms / self._world.size

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Like `VisionEncoder.encode`; each rank takes its part of the pieces."""
        mine = np.array_split(pixels, self._world.size)[self._world.rank]
        parts = self._world.gather(on_all(self._world, lambda: to_host(self._vision.encode(mine))))
        return np.concatenate(parts) if parts is not None else np.empty(0, np.float32)

    def seconds_in_sums(self) -> float:
        """Spent so far in all-reduces, waiting for the other ranks included."""
        return self._seconds_in_sums

    def _load(self, expected: Identity, threads: int, places: int, machine: MPI.Comm) -> Executor:
        """threads: of all ranks of this machine."""
        manifest, world = read_manifest(self._directory), self._world
        refuse_other_size(self._directory, manifest, world.size)
        if difference := expected.difference(identify(manifest)):
            raise ManifestError(f"{self._directory} {difference}; give all ranks the same engine and packages")
        name = f"{SHARDED}/language/rank{world.rank}"
        verify(self._directory, manifest, components=[name, f"{SHARDED}/vision"])
        take_device(self._directory, manifest, machine.rank, machine.size)
        model, root, limits = manifest.models[SHARDED], self._directory / SHARDED, manifest.limits(SHARDED)
        self._config = model.config.language
        rank, shared = root / f"rank{world.rank}", share_threads(manifest.target, max(1, threads // machine.size))
        executor = load_rank(manifest.target, rank / "language", shared, self._sum)
        scoring = load_scoring(model.scoring, manifest.target, rank, shared)
        shard = Shard(world.rank, world.size)
        self.language = LanguageModel(
            executor, self._config, model.prune_layers, model.scores, shard, limits, scoring, places
        )
        self._vision = VisionEncoder(load(manifest.target, root / "vision", shared), model.config.vision, limits)
        return executor

    def _connect(self, executor: CollectiveExecutor, gpu: int) -> None:
        """Let the plans of all ranks sum over one communicator. Raises EngineError on all ranks."""
        from engine.runtime.communicator import Communicator, load_nccl, make_unique_id

        world, rank = self._world, self._world.rank

        def prepare() -> bytes | None:
            load_nccl()
            return make_unique_id() if rank == 0 else None

        unique_id = world.bcast(on_all(world, prepare))
        self._communicator = on_all_waiting(world, lambda: Communicator(unique_id, rank, world.size, gpu))
        capsule = self._communicator.capsule()
        on_all_waiting(world, lambda: executor.set_communicator(capsule))

    def _sum(self, partial: np.ndarray) -> None:
        start = time.perf_counter()
        self._world.Allreduce(MPI.IN_PLACE, partial, MPI.SUM)
        self._seconds_in_sums += time.perf_counter() - start

    def whole(self, logits: Array) -> np.ndarray:
        """[..., this rank's part of the vocabulary] -> on rank 0, [..., vocabulary]."""
        parts = np.empty((self._world.size, *logits.shape), np.float32) if self._world.rank == 0 else None
        mine = np.ascontiguousarray(to_host(logits))
        self._world.Gather(mine, parts)
        return mine if parts is None else np.concatenate([*parts], axis=-1)[..., : self._config.vocab_size]


def refuse_other_size(directory: Path, manifest: Manifest, size: int) -> None:
    """Raises ManifestError."""
    if manifest.world_size != size:
        raise ManifestError(
            f"{directory} was built for world size {manifest.world_size}, but mpiexec started {size}; "
            f"give mpiexec -n {manifest.world_size}, or rebuild with {BuildFlag.TP} {size}"
        )
