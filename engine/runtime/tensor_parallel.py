"""What the leader says to the ranks of a model: every message goes to all of them at once, and its result comes back
from rank 0. The leader alone samples, so all ranks agree."""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import engine
from engine.engine_directory import CONVERTER
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.runtime.language import Language
from engine.runtime.loading import BACKENDS
from engine.runtime.prompt import Need, Rows
from engine.target import Device

MPIEXEC = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""What MPICH and its relatives, and Open MPI, set for the processes that they start."""


@dataclass(frozen=True)
class Identity:
    """What ranks must have in common to compute together."""

    engine_version: str
    versions: dict[str, str]
    components: str
    """SHA-256 over keys and files of the engine directory."""

    def difference(self, other: "Identity") -> str | None:
        """What is different there, in words; None if nothing is."""
        if self.components != other.components:
            return "has other fingerprints than the engine that was opened"
        for name, mine in {"sgl-engine": self.engine_version, **self.versions}.items():
            theirs = {"sgl-engine": other.engine_version, **other.versions}[name]
            if mine != theirs:
                return f"is run by {name} {theirs} instead of {mine}"
        return None


class RanksDiedError(EngineError):
    """The ranks died, or were given up, before they answered; slots ended with them."""


class AgreedError(EngineError):
    """What one rank saw that it cannot do, such as for lack of memory, raised on all: they stay in step and go on.

    Of what all ranks enter at once, such as a sum, an error ends them instead: nothing else frees those that wait.
    """


def identify(manifest: Manifest) -> Identity:
    """Of this process."""
    content = json.dumps(CONVERTER.unstructure(manifest.components), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    packages = ("numpy", "mpi4py", *BACKENDS[manifest.target].rank_packages)
    return Identity(engine.__version__, {name: _version(name) for name in packages}, digest)


def rank_device(manifest: Manifest) -> Device:
    """What the ranks of an engine run on."""
    return manifest.target.devices()[0]


def started_by_mpiexec() -> bool:
    """Whether this process is one of several that `mpiexec` started."""
    return bool(announced_sizes())


def announced_sizes() -> list[int]:
    """How many processes there are by the variables of what started this one."""
    return [int(os.environ[name]) for name in MPIEXEC if name in os.environ]


class Ranks(Protocol):
    """The ranks of one model. Whatever is said to them, all of them do."""

    epoch: int
    """How often they ended: what was said to earlier ones is forgotten."""
    death: str
    """How they ended last, in a sentence."""

    def open(self, directory: Path, manifest: Manifest, threads: int, places: int) -> None:
        """Load the model on every rank; `threads` are shared by those of one machine. Raises EngineError."""

    def do(self, message: "Message") -> Any:
        """What rank 0 makes of it. Raises RanksDiedError when a rank died, AgreedError when one could not do it."""


class Message(Protocol):
    """Something that all ranks do at the same time; what rank 0 returns counts."""

    def on(self, rank: "Rank") -> Any: ...


class Rank(Protocol):
    """What messages find on each rank; the methods are those of `tensor_parallel_model.RankModel`."""

    @property
    def language(self) -> Language: ...

    def load(self, expected: Identity, threads: int, places: int) -> None: ...

    def encode(self, pixels: np.ndarray) -> np.ndarray: ...

    def open(self, need: Need) -> int: ...

    def whole(self, logits: Any) -> np.ndarray: ...

    def visual_scores(self, slot: int) -> np.ndarray: ...

    def value_norms(self, slot: int) -> np.ndarray: ...

    def truncate(self, slot: int, length: int) -> None: ...

    def save(self, slot: int, start: int, stop: int) -> int: ...

    def seconds_in_sums(self) -> float: ...


@dataclass(frozen=True)
class OpenShare:
    """Open the engine, if the ranks fit together."""

    expected: Identity
    threads: int
    places: int

    def on(self, rank: Rank) -> None:
        rank.load(self.expected, self.threads, self.places)


@dataclass(frozen=True)
class Encode:
    pixels: np.ndarray

    def on(self, rank: Rank) -> np.ndarray:
        return rank.encode(self.pixels)


@dataclass(frozen=True)
class OpenSlot:
    need: Need

    def on(self, rank: Rank) -> int:
        return rank.open(self.need)


@dataclass(frozen=True)
class Extend:
    slot: int
    rows: Rows
    wanted: np.ndarray
    scored: np.ndarray

    def on(self, rank: Rank) -> np.ndarray:
        return rank.whole(rank.language.extend(self.slot, self.rows, self.wanted, self.scored))


@dataclass(frozen=True)
class Step:
    slots: tuple[int, ...]
    tokens: np.ndarray
    scored: np.ndarray

    def on(self, rank: Rank) -> np.ndarray:
        return rank.whole(rank.language.step(self.slots, self.tokens, self.scored))


@dataclass(frozen=True)
class ReadVisualScores:
    slot: int

    def on(self, rank: Rank) -> np.ndarray:
        return rank.visual_scores(self.slot)


@dataclass(frozen=True)
class ValueNorms:
    slot: int

    def on(self, rank: Rank) -> np.ndarray:
        return rank.value_norms(self.slot)


@dataclass(frozen=True)
class Truncate:
    slot: int
    length: int

    def on(self, rank: Rank) -> None:
        rank.truncate(self.slot, self.length)


@dataclass(frozen=True)
class CloseSlot:
    slot: int

    def on(self, rank: Rank) -> None:
        rank.language.close(self.slot)


@dataclass(frozen=True)
class SaveRows:
    slot: int
    start: int
    stop: int

    def on(self, rank: Rank) -> int:
        return rank.save(self.slot, self.start, self.stop)


@dataclass(frozen=True)
class RestoreRows:
    slot: int
    saved: int
    count: int

    def on(self, rank: Rank) -> None:
        rank.language.restore(self.slot, self.saved, self.count)


@dataclass(frozen=True)
class ForgetRows:
    saved: int

    def on(self, rank: Rank) -> None:
        rank.language.forget(self.saved)


@dataclass(frozen=True)
class SecondsInSums:
    """Spent so far in all-reduces, waiting for the other ranks included."""

    def on(self, rank: Rank) -> float:
        return rank.seconds_in_sums()


FIRST = (OpenShare, Encode, OpenSlot)
"""Messages that need nothing of an earlier one: when the ranks died meanwhile, they are started and told once more."""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"
