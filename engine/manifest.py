"""The engine directory on disk: what it holds, from what it was built, and whether it is still what was built."""

import hashlib
import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cattrs import transform_error
from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception

from engine.config import BuildConfig, ExitConfig, GuidanceConfig, Precision, Target
from engine.dims import Limits
from engine.errors import EngineError, ManifestError
from engine.model_config import ModelConfig
from engine.parallel import SHARDED
from engine.remedy import rebuild

FORMAT_VERSION = 2
"""Raised whenever a directory of the previous version can no longer be run."""
MANIFEST = "manifest.json"
STAMP = ".verified.json"
CHUNK_BYTES = 1 << 22
MODELS = ("small", "large")

Read = TypeVar("Read")


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ComponentRecord:
    """A part that is built, cached and verified as a whole, e.g. `small/vision`, `large/language/rank0`.

    key: fingerprint of everything that went into it.
    files: path in the engine directory, with forward slashes -> its record.
    """

    key: str
    files: dict[str, FileRecord]
    peak_bytes: int
    """Most memory that the building process had used once this component was done."""
    seconds: float

    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class EngineModel:
    """One model of the pair, as built."""

    config: ModelConfig
    checkpoint_sha256: str
    prune_layers: tuple[int, ...]
    scores: bool
    """Whether its language engine emits attention scores."""


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime needs to know of an engine directory."""

    format_version: int
    engine_version: str
    created: str
    """UTC, ISO 8601."""
    target: Target
    precision: Precision
    max_tokens: int
    max_batch: int
    world_size: int
    versions: dict[str, str]
    """Of the libraries that built it."""
    models: dict[str, EngineModel]
    """`small` and `large`."""
    components: dict[str, ComponentRecord]
    guidance: GuidanceConfig
    exit: ExitConfig
    max_kept_tokens: int | None = None
    """Longest sequence of the large model from its first prune point on; None is max_tokens."""
    gpu: str | None = None
    """The only kind of GPU that it runs on; None is any that the target supports."""

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
        built.max_tokens,
        built.max_batch,
        config.tiling.most_tiles(),
        planned=built.target.plans_memory(),
        max_kept_tokens=built.max_kept_tokens if prune_layers else None,
    )


@dataclass(frozen=True)
class _Stamp:
    """A file's state when its hash was last computed: as long as it is unchanged, so is the hash."""

    bytes: int
    mtime_ns: int
    inode: int
    sha256: str


def read_manifest(directory: Path) -> Manifest:
    """Raises ManifestError unless the directory is a complete engine of this version; `verify` checks its files."""
    path = directory / MANIFEST
    content = _read_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"{path} is of format version {version!r}, but this version reads {FORMAT_VERSION}; {rebuild(directory)}"
        )
    if content.get("target") not in list(Target):
        raise ManifestError(
            f"{path} is for target {content.get('target')!r}, but this version runs {', '.join(Target)}; "
            f"{rebuild(directory)}"
        )
    manifest = _structure(content, Manifest, path)
    if manifest.models.keys() != set(MODELS):
        raise ManifestError(
            f"{path} describes models {sorted(manifest.models)} instead of small and large; {rebuild(directory)}"
        )
    for component in manifest.components.values():
        for name in component.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ManifestError(
                    f"{path} names {name!r}, outside the engine directory; {rebuild(directory, manifest)}"
                )
    return manifest


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


def verify(
    directory: Path,
    manifest: Manifest,
    *,
    models: Collection[str] = MODELS,
    components: Collection[str] | None = None,
    full: bool = False,
) -> None:
    """Raises ManifestError unless every file of these components has the recorded size and SHA-256.

    components: None is all of these models, and asks for those `required`.
    Hashes computed earlier are remembered in the directory and trusted while a file's size, time and inode stay the
    same; `full` computes all of them again.
    """
    remedy = rebuild(directory, manifest)
    stamps = {} if full else _read_stamps(directory)
    known = dict(stamps)
    if components is None:
        components = [name for name in {*manifest.required(), *manifest.components} if name.split("/")[0] in models]
    for name in sorted(components):
        if name not in manifest.components:
            raise ManifestError(f"{directory / MANIFEST} has no component {name}; {remedy}")
        stamps |= _verify_component(directory, name, manifest.components[name], known, remedy)
    if stamps != known:
        _write_stamps(directory, stamps)


def verify_component(directory: Path, name: str, record: ComponentRecord) -> None:
    """Raises ManifestError unless every file of one component has the recorded size and SHA-256."""
    _verify_component(directory, name, record, {}, rebuild(directory))


def remember_verified(directory: Path, manifest: Manifest) -> None:
    """Spare the next `verify` its hashing: the caller has just computed the hash of every file."""
    records = [item for component in manifest.components.values() for item in component.files.items()]
    _write_stamps(directory, {name: _stamp(directory / name, record.sha256) for name, record in records})


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda size: None) -> str:
    """Streamed; `on_bytes` gets the size of each piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


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


def _verify_component(
    directory: Path, name: str, record: ComponentRecord, known: dict[str, _Stamp], remedy: str
) -> dict[str, _Stamp]:
    def fail(file: str, reason: str) -> ManifestError:
        return ManifestError(
            f"{directory / file} of component {name} {reason}; {remedy} (only that component is rebuilt)"
        )

    stamps = {}
    for file, expected in record.files.items():
        path = directory / file
        try:
            # The state before hashing: a later change of the file then differs from it.
            stamp = _stamp(path, expected.sha256)
            if stamp.bytes != expected.bytes:
                raise fail(file, f"has {stamp.bytes} bytes instead of {expected.bytes}")
            if known.get(file) != stamp and file_sha256(path) != expected.sha256:
                raise fail(file, "was altered: its SHA-256 differs from the manifest's")
        except FileNotFoundError:
            raise fail(file, "is missing") from None
        except OSError as error:
            raise fail(file, f"cannot be read ({error.strerror})") from None
        stamps[file] = stamp
    return stamps


def _stamp(path: Path, sha256: str) -> _Stamp:
    stat = path.stat()
    return _Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256)


def _read_stamps(directory: Path) -> dict[str, _Stamp]:
    try:
        return _structure(_read_json(directory / STAMP), dict[str, _Stamp], directory / STAMP)
    except ManifestError:
        return {}


def _write_stamps(directory: Path, stamps: dict[str, _Stamp]) -> None:
    try:
        write_json(directory / STAMP, stamps)
    except OSError:
        return  # a read-only engine directory is as good, only slower to open


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(
            f"{path} is missing, so {path.parent} is no finished engine directory; give another, or "
            f"{rebuild(path.parent)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path} cannot be read as JSON ({error}); {rebuild(path.parent)}") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{path} is not a JSON object; {rebuild(path.parent)}")
    return content


def _exact(value: Any, kind: type[Read]) -> Read:
    allowed = (int, float) if kind is float else (str if issubclass(kind, StrEnum) else kind,)
    if type(value) not in allowed:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return kind(value)  # type: ignore[call-arg]


def _structure(content: Any, kind: type[Read], path: Path) -> Read:
    try:
        return CONVERTER.structure(content, kind)
    except BaseValidationError as error:
        reason = transform_error(error, "manifest", format_exception=_explain)[0]
        raise ManifestError(f"{path} is not as this version writes it ({reason}); {rebuild(path.parent)}") from None


def _explain(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, EngineError | TypeError) else format_exception(error, kind)


CONVERTER = make_converter(forbid_extra_keys=True)
# Numbers are not read from text: "false" would count as true.
for primitive in (bool, int, float, str):
    CONVERTER.register_structure_hook(primitive, _exact)
