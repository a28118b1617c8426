"""The engine directory on disk: where its parts lie, reading and writing what it says of itself."""

import json
import os
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cattrs import transform_error
from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception

from engine import json_file
from engine.bounds import is_line, shown
from engine.errors import EngineError, ManifestError
from engine.manifest import FORMAT_VERSION, MODELS, Manifest, interface_of
from engine.remedy import build_ranks, rebuild
from engine.target import Target

MANIFEST = "manifest.json"
RECORD = "record.json"
"""Beside the files of a finished component in the partial directory."""
WHOLE = "components.json"
"""Beside the record where single ranks are built: all components of the engine that they are parts of."""
STAMP = ".verified.json"
"""What `engine.verification` remembers."""

Read = TypeVar("Read")


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
