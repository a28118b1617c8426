"""What an engine directory says of itself: what it holds, and from what it was built."""

import hashlib
from dataclasses import dataclass

from engine.bindings import Scoring, language_bindings, vision_bindings
from engine.bounds import Batch, Bytes, Name, Ranks, Tiles, Tokens, check_bounds, shown
from engine.config import BuildConfig, ExitConfig, GuidanceConfig
from engine.dims import Limits
from engine.errors import EngineError
from engine.model_config import ModelConfig
from engine.parallel import SHARDED, Shard, check_shards
from engine.target import Precision, Target

FORMAT_VERSION = 4
"""Raised whenever a directory of the previous version can no longer be run."""
MODELS = ("small", "large")


@dataclass(frozen=True)
class FileRecord:
    bytes: Bytes
    sha256: Name

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class ComponentRecord:
    """A part that is built, cached and verified as a whole, e.g. `small/vision`, `large/language/rank0`.

    key: fingerprint of everything that went into it.
    files: path in the engine directory, with forward slashes -> its record.
    """

    key: Name
    files: dict[str, FileRecord]
    peak_bytes: Bytes
    """Most memory that the building process had used once this component was done."""
    seconds: float

    def __post_init__(self) -> None:
        check_bounds(self)

    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class EngineModel:
    """One model of the pair, as built."""

    config: ModelConfig
    checkpoint_sha256: Name
    prune_layers: tuple[int, ...]
    scoring: Scoring
    interface: Name
    """`interface_of` the engines that were built: a manifest that somebody changed no longer fits them."""

    def __post_init__(self) -> None:
        check_bounds(self)
        last = self.config.language.num_layers - 1
        if list(self.prune_layers) != sorted({*self.prune_layers}.intersection(range(1, last + 1))):
            raise EngineError(f"prune_layers {shown(self.prune_layers)} are not layers of 1..{last} in rising order")

    @property
    def scores(self) -> bool:
        """Whether it emits attention scores."""
        return self.scoring is not Scoring.OFF


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime needs to know of an engine directory."""

    format_version: int
    engine_version: Name
    created: Name
    """UTC, ISO 8601."""
    target: Target
    precision: Precision
    max_tokens: Tokens
    max_batch: Batch
    world_size: Ranks
    versions: dict[Name, Name]
    """Of the libraries that built it."""
    models: dict[str, EngineModel]
    """`small` and `large`."""
    components: dict[Name, ComponentRecord]
    guidance: GuidanceConfig
    exit: ExitConfig
    max_kept_tokens: Tokens | None = None
    """Longest sequence of the large model from its first prune point on; None is max_tokens."""
    max_tiles: Tiles | None = None
    """Most tiles of one picture, as the build was asked for; None is each checkpoint's own."""
    gpu: Name | None = None
    """The only kind of GPU that it runs on; None is any that the target supports."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_kept_tokens is not None and self.max_kept_tokens > self.max_tokens:
            raise EngineError(f"max_kept_tokens {self.max_kept_tokens} is above max_tokens {self.max_tokens}")
        for name, model in self.models.items():
            shards = self.world_size if name == SHARDED else 1
            check_shards(model.config.language, Shard(0, shards), f"the {name} model")

    def total_bytes(self) -> int:
        return sum(component.total_bytes() for component in self.components.values())

    def limits(self, model: str) -> Limits:
        """What the engines of `small` or `large` were built for."""
        return limits_of(self, self.models[model].config, self.models[model].prune_layers)

    def required(self) -> set[str]:
        """Components without which nothing runs."""
        parts = {f"{model}/{part}" for model in MODELS for part in ("tokenizer", "vision", "language/rank0")}
        return parts | {f"{SHARDED}/language/rank{rank}" for rank in range(self.world_size)}


def limits_of(built: BuildConfig | Manifest, config: ModelConfig, prune_layers: tuple[int, ...]) -> Limits:
    """The ranges that the engines of one model are built for."""
    return Limits(
        built.tokens() if isinstance(built, BuildConfig) else built.max_tokens,
        built.max_batch,
        config.tiling.most_tiles(),
        planned=built.target.plans_memory(),
        max_kept_tokens=built.max_kept_tokens if prune_layers else None,
    )


def interface_of(
    built: BuildConfig | Manifest, config: ModelConfig, prune_layers: tuple[int, ...], scoring: Scoring
) -> str:
    """SHA-256 over names, types and dimensions of all inputs and outputs of one model's engines, of the whole model."""
    limits, dtype = limits_of(built, config, prune_layers), built.target.activations(built.precision)
    vision = vision_bindings(config.vision, limits, dtype)
    language = language_bindings(config.language, limits, prune_layers, scoring, Shard(), dtype)
    lines = [
        f"{binding.name} {binding.dtype} {' '.join(map(str, binding.dims))}"
        for bindings in (vision, language)
        for binding in (*bindings.inputs, *bindings.outputs)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
