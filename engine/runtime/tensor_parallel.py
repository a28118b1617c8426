"""A model on several ranks, behind the same interface as one in this process: the leader says, all ranks do.

Every message goes to all ranks at once (`Ranks`) and its result comes back from rank 0. The leader alone samples, so
all ranks agree.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import engine
from engine.bindings import segment_of
from engine.dims import Limits
from engine.engine_directory import CONVERTER
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.model_config import VisionConfig
from engine.parallel import SHARDED, Shard
from engine.runtime.language import Language
from engine.runtime.loading import BACKENDS
from engine.runtime.prompt import Need, Rows
from engine.runtime.vision import pieces_per_call
from engine.target import Device

MPIEXEC = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""What MPICH and its relatives, and Open MPI, set for the processes that they start."""
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


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


class ShardedLanguage:
    """Like `LanguageModel`; slots stay with the ranks, and end with them."""

    def __init__(self, ranks: Ranks, manifest: Manifest, places: int) -> None:
        self._ranks, self._places = ranks, places
        self._epochs: dict[int, int] = {}
        """Of each open slot: of the ranks that have it."""
        self._saved: dict[int, int] = {}
        """The same of rows that were saved."""
        self._token_bytes, limits = token_bytes(manifest), manifest.limits(SHARDED)
        planned = tuple(limits.segment_tokens(segment) for segment in range(len(self._token_bytes)))
        self._planned = planned if limits.planned else None

    def nbytes(self, need: Need) -> int:
        """Of a rank on its GPU; on CPUs, of all ranks, as if they shared one memory."""
        lengths = self._planned or need.lengths
        return sum(length * size for length, size in zip(lengths, self._token_bytes, strict=True))

    def has_place(self) -> bool:
        return sum(epoch == self._ranks.epoch for epoch in self._epochs.values()) < self._places

    def open(self, need: Need) -> int:
        slot: int = self._ranks.do(OpenSlot(need))
        self._epochs[slot] = self._ranks.epoch
        return slot

    def extend(self, slot: int, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return self._on([slot], Extend(slot, rows, wanted, scored))

    def step(self, slots: Sequence[int], tokens: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return self._on(slots, Step(tuple(slots), tokens, scored))

    def visual_scores(self, slot: int) -> np.ndarray:
        return self._on([slot], ReadVisualScores(slot))

    def value_norms(self, slot: int) -> np.ndarray:
        norms: np.ndarray = self._on([slot], ValueNorms(slot))
        return norms

    def truncate(self, slot: int, length: int) -> None:
        self._on([slot], Truncate(slot, length))

    def close(self, slot: int) -> None:
        if self._epochs.pop(slot) == self._ranks.epoch:
            self._ranks.do(CloseSlot(slot))

    def row_bytes(self) -> int:
        """As `nbytes`."""
        return sum(self._token_bytes)

    def save(self, slot: int, start: int, stop: int) -> int:
        saved: int = self._on([slot], SaveRows(slot, start, stop))
        self._saved[saved] = self._ranks.epoch
        return saved

    def holds(self, saved: int) -> bool:
        return self._saved.get(saved) == self._ranks.epoch

    def restore(self, slot: int, saved: int, count: int) -> None:
        self._on([slot], RestoreRows(slot, saved, count))

    def forget(self, saved: int) -> None:
        if self._saved.pop(saved) == self._ranks.epoch:
            self._ranks.do(ForgetRows(saved))

    def _on(self, slots: Sequence[int], message: Message) -> Any:
        """Raises RanksDiedError for a slot of ranks that are gone."""
        if any(self._epochs[slot] != self._ranks.epoch for slot in slots):
            raise RanksDiedError(self._ranks.death)
        return self._ranks.do(message)


def token_bytes(manifest: Manifest) -> tuple[int, ...]:
    """Of a token's keys and values in the layers of each segment; see `ShardedLanguage.nbytes`."""
    model, world_size = manifest.models[SHARDED], manifest.world_size
    config = model.config.language
    heads = len(Shard(0, world_size).kv_heads(config.num_kv_heads))
    layer_bytes = 2 * heads * config.head_dim * FLOAT_BYTES[manifest.target.activations(manifest.precision)]
    layers = Counter(segment_of(layer, model.prune_layers) for layer in range(config.num_layers))
    sharing = world_size if rank_device(manifest) is Device.CPU else 1
    return tuple(layers[segment] * layer_bytes * sharing for segment in range(len(model.prune_layers) + 1))


class ShardedVision:
    """A vision encoder whose pieces are shared out among the ranks, each of which holds it whole."""

    def __init__(self, ranks: Ranks, config: VisionConfig, limits: Limits, world_size: int) -> None:
        self._ranks = ranks
        self.pieces_per_call = world_size * pieces_per_call(config, limits)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Like `VisionEncoder.encode`."""
        features: np.ndarray = self._ranks.do(Encode(pixels))
        return features


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"
