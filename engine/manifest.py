"""The engine directory on disk: what it holds, and from what it was built."""

import hashlib
import json
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cattrs import transform_error
from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception

from engine import json_file
from engine.bindings import Scoring, language_bindings, vision_bindings
from engine.bounds import Batch, Bytes, Name, Pixels, Ranks, Tiles, Tokens, check_bounds, is_line, shown
from engine.config import BuildConfig, ExitConfig, GuidanceConfig
from engine.dims import Limits
from engine.errors import EngineError, ManifestError
from engine.model_config import ModelConfig, NativeSizeConfig
from engine.parallel import SHARDED, Mapping, check_shards
from engine.remedy import build_ranks, rebuild
from engine.target import Precision, Target

FORMAT_VERSION = 4
"""Raised whenever a directory of the previous version can no longer be run."""
MANIFEST = "manifest.json"
RECORD = "record.json"
"""Beside the files of a finished component in the partial directory."""
WHOLE = "components.json"
"""Beside the record where single ranks are built: all components of the engine that they are parts of."""
STAMP = ".verified.json"
"""What `engine.verification` remembers."""
MODELS = ("small", "large")

Read = TypeVar("Read")


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
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    """Of one picture, as the build was asked for; None is each checkpoint's own."""
    gpu: Name | None = None
    """The only kind of GPU that it runs on; None is any that the target supports."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_kept_tokens is not None and self.max_kept_tokens > self.max_tokens:
            raise EngineError(f"max_kept_tokens {self.max_kept_tokens} is above max_tokens {self.max_tokens}")
        for name, model in self.models.items():
            shards = self.world_size if name == SHARDED else 1
            check_shards(model.config.language, Mapping(0, shards), f"the {name} model")

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
    tokens = built.tokens() if isinstance(built, BuildConfig) else built.max_tokens
    return Limits(
        tokens,
        built.max_batch,
        1 if isinstance(config.tiling, NativeSizeConfig) else config.most_tiles(),
        planned=built.target.plans_memory(),
        max_kept_tokens=built.max_kept_tokens if prune_layers else None,
        max_picture_tokens=min(tokens, config.most_tokens()),
    )


def interface_of(
    built: BuildConfig | Manifest, config: ModelConfig, prune_layers: tuple[int, ...], scoring: Scoring
) -> str:
    """SHA-256 over names, types and dimensions of all inputs and outputs of one model's engines, of the whole model."""
    limits, dtype = limits_of(built, config, prune_layers), built.precision.activations(built.target)
    vision = vision_bindings(config.vision, limits, dtype)
    language = language_bindings(config.language, limits, prune_layers, scoring, Mapping(), dtype)
    lines = [
        f"{binding.name} {binding.dtype} {' '.join(map(str, binding.dims))}"
        for bindings in (vision, language)
        for binding in (*bindings.inputs, *bindings.outputs)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Raises ManifestError unless the directory is a complete engine of this version; `verify` checks its files."""
    path = directory / MANIFEST
    content = _read_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"{path} is of format version {shown(version)}, but this version reads {FORMAT_VERSION}; "
            f"{rebuild(directory)}"
        )
    if content.get("target") not in list(Target):
        raise ManifestError(
            f"{path} is for target {shown(content.get('target'))}, but this version runs {', '.join(Target)}; "
            f"{rebuild(directory)}"
        )
    manifest = _structure(content, Manifest, path)
    if manifest.models.keys() != set(MODELS):
        raise ManifestError(
            f"{path} describes models {shown(sorted(manifest.models))} instead of small and large; {rebuild(directory)}"
        )
    for name, model in manifest.models.items():
        if model.interface != interface_of(manifest, model.config, model.prune_layers, model.scoring):
            raise ManifestError(
                f"{path} was altered: the {name} model has other inputs and outputs than the engines that were built "
                f"of it; {rebuild(directory, manifest)}"
            )
    for component in manifest.components.values():
        for name in component.files:
            if not _is_inside(name):
                raise ManifestError(
                    f"{path} names {shown(name)}, outside the engine directory; {rebuild(directory, manifest)}"
                )
    return manifest


def _is_inside(name: str) -> bool:
    """Whether it names a file in the directory that it is relative to."""
    parts = PurePosixPath(name).parts
    return is_line(name) and bool(parts) and not {"..", "/", "//"}.intersection(parts)


def partial_directory(out: Path) -> Path:
    """Where components of an engine directory wait until all are built."""
    return out.with_name(f".{out.name}.partial")


def staged(partial: Path, component: str) -> Path:
    """The place of one component there."""
    return partial / component.replace("/", ".")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    write_json(directory / MANIFEST, manifest)


def is_engine_directory(directory: Path) -> bool:
    """Whether it is one of ours, of whatever version and however damaged: a rebuild may replace it."""
    if (directory / STAMP).is_file() or all((directory / f"{model}/rank0/language.onnx").is_file() for model in MODELS):
        return True
    try:
        return {"format_version", "engine_version", "components"} <= _read_json(directory / MANIFEST).keys()
    except ManifestError:
        return False


def write_json(path: Path, value: object) -> None:
    """A configuration or record as readable JSON; `path` is replaced at once or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(CONVERTER.unstructure(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path, kind: type[Read]) -> Read:
    """What `write_json` wrote of this class. Raises ManifestError."""
    return _structure(_read_json(path), kind, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json_file.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        missing = f"{path} is missing, so {path.parent} is no finished engine directory"
        if unbuilt := _unbuilt(path.parent):
            raise ManifestError(f"{missing}: still to build are {', '.join(unbuilt)}; {build_ranks(unbuilt)}") from None
        raise ManifestError(f"{missing}; give another, or {rebuild(path.parent)}") from None
    except json_file.Unreadable as error:
        raise ManifestError(f"{path} cannot be read as JSON ({error}); {rebuild(path.parent)}") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{path} is not a JSON object; {rebuild(path.parent)}")
    return content


def _unbuilt(out: Path) -> list[str]:
    """Components that an engine of which single ranks are built lacks."""
    partial = partial_directory(out.absolute())
    try:
        latest = max(partial.glob(f"*/{WHOLE}"), key=lambda path: path.stat().st_mtime)
        names = CONVERTER.structure(json_file.read_json(latest), list[str])
        return [name for name in names if not (staged(partial, name) / RECORD).is_file()]
    except (OSError, ValueError, json_file.Unreadable, BaseValidationError):  # there is none, or it was just moved
        return []


def _exact(value: Any, kind: type[Read]) -> Read:
    allowed = (int, float) if kind is float else (str if issubclass(kind, StrEnum) else kind,)
    if type(value) not in allowed:
        raise TypeError(f"{shown(value)} is not {kind.__name__}")
    return kind(value)  # type: ignore[call-arg]


def _structure(content: Any, kind: type[Read], path: Path) -> Read:
    try:
        return CONVERTER.structure(content, kind)
    except BaseValidationError as error:
        reason = " ".join(transform_error(error, "manifest", format_exception=_explain)[0].split())
        raise ManifestError(f"{path} is not as this version writes it ({reason}); {rebuild(path.parent)}") from None


def _explain(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, EngineError | TypeError) else format_exception(error, kind)


CONVERTER = make_converter(forbid_extra_keys=True)
# Numbers are not read from text: "false" would count as true.
for primitive in (bool, int, float, str):
    CONVERTER.register_structure_hook(primitive, _exact)
