"""Staged output: components are built beside the engine directory, kept across interruptions, put in place at once.

While a build runs, `.<out>.partial` holds finished components, one directory each, and `.<out>.lock` keeps others out.
At the end the engine is assembled there by hard links and renamed to `out`; a kill at any moment leaves `out` whole,
or absent with the previous engine safe in the partial directory, from where the next build puts it back.
"""

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from engine.errors import EngineError, ManifestError
from engine.manifest import (
    ComponentRecord,
    FileRecord,
    Manifest,
    file_sha256,
    is_engine_directory,
    read_json,
    read_manifest,
    remember_verified,
    verify,
    verify_component,
    write_json,
    write_manifest,
)

RECORD = "record.json"
"""Beside the files of a finished component in the partial directory."""
UNFINISHED = ".unfinished"
ENGINE = "engine"
REPLACED = "replaced"
"""Of the partial directory: the engine being assembled, and the previous one on its way out."""


@dataclass(frozen=True)
class Component:
    """One part of an engine directory.

    name: `<model>/<part>`, e.g. `large/language/rank0`.
    key: `component_key` of everything that goes in; the same key means the same files.
    build: writes files into the directory it is given, which becomes `<out>/<model>`, and reports progress 0..1.
    """

    name: str
    key: str
    build: Callable[[Path, Callable[[float], None]], None]

    def model(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class BuildReport:
    """Names of the components that were in `out`, left by an interrupted build, or built now."""

    cached: tuple[str, ...]
    resumed: tuple[str, ...]
    built: tuple[str, ...]
    seconds: float
    peak_bytes: int
    """Most memory that this process, or a compiler that it ran, ever used."""


def build_components(
    out: Path,
    components: Sequence[Component],
    make_manifest: Callable[[dict[str, ComponentRecord]], Manifest],
    on_progress: Callable[[str, float], None] = lambda name, fraction: None,
) -> BuildReport:
    """Make `out` the engine directory of these components, building only those that are not there yet.

    on_progress: gets a component's name and how much of it is done, 0..1.
    Raises EngineError when another build is writing `out`, `out` is something else, or the disk is full.
    """
    started = time.monotonic()
    refuse_foreign(out)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            try:
                roots, built = _build_missing(out, partial, components, make_manifest, on_progress)
            finally:
                with suppress(OSError):
                    partial.rmdir()  # only if nothing in it can be resumed
    except OSError as error:
        raise _explain(error, out) from error
    cached = tuple(name for name, root in roots.items() if root == out)
    resumed = tuple(name for name in roots if name not in cached and name not in built)
    return BuildReport(cached, resumed, built, time.monotonic() - started, _peak_bytes())


def refuse_foreign(out: Path) -> None:
    """Raises EngineError when `out` is no place for an engine; it is asked before anything slow."""
    try:
        out = out.resolve()
        if not out.name or (out.exists() and not out.is_dir()):
            raise EngineError(f"{out} is {'a file' if out.name else 'the root directory'}; choose another --out")
        if out.exists() and any(out.iterdir()) and not is_engine_directory(out):
            raise EngineError(f"{out} is not empty and not an engine directory; choose another --out or empty it first")
    except OSError as error:
        raise _explain(error, out) from error


def _build_missing(
    out: Path,
    partial: Path,
    components: Sequence[Component],
    make_manifest: Callable[[dict[str, ComponentRecord]], Manifest],
    on_progress: Callable[[str, float], None],
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Where the files of each component were found or made, and the names of those made."""
    _put_back(partial / REPLACED, out)
    shutil.rmtree(partial / REPLACED, ignore_errors=True)
    previous = _read_previous(out)
    roots: dict[str, Path] = {}
    records: dict[str, ComponentRecord] = {}
    built = []
    for component in components:
        name = component.name
        place = partial / name.replace("/", ".")
        if record := _find_cached(out, previous, component):
            roots[name] = out
        elif record := _find_resumable(place, component):
            roots[name] = place
        else:
            record = _build(place, component, on_progress)
            roots[name] = place
            built.append(name)
        records[name] = record
        on_progress(name, 1.0)
    manifest = make_manifest(records)
    if previous is None or previous.components != records:
        _assemble(partial / ENGINE, roots, manifest)
        _swap(partial / ENGINE, out, partial / REPLACED)
    elif replace(manifest, created=previous.created) != previous:
        write_manifest(out, manifest)
    shutil.rmtree(partial, ignore_errors=True)
    return roots, tuple(built)


def component_key(*parts: object) -> str:
    """SHA-256 of the parts as canonical JSON: dataclasses, enums, paths, and what JSON knows."""
    text = json.dumps(parts, default=_canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        # The type's name tells configurations with equal fields apart.
        return {type(value).__name__: {field.name: getattr(value, field.name) for field in fields(value)}}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return value.as_posix()
    raise TypeError(f"a component key cannot hold {type(value).__name__}")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    path = out.with_name(f".{out.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last owner may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BlockingIOError:
            os.close(descriptor)
            raise EngineError(
                f"another build is writing {out}; wait until it is done or choose another --out"
            ) from None
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _read_previous(out: Path) -> Manifest | None:
    try:
        return read_manifest(out)
    except ManifestError:
        return None


def _find_cached(out: Path, previous: Manifest | None, component: Component) -> ComponentRecord | None:
    record = previous.components.get(component.name) if previous else None
    if previous is None or record is None or record.key != component.key:
        return None
    try:
        verify(out, previous, components=[component.name])
    except ManifestError:
        return None
    return record


def _find_resumable(place: Path, component: Component) -> ComponentRecord | None:
    try:
        record = read_json(place / RECORD, ComponentRecord)
        if record.key != component.key:
            return None
        verify_component(place, component.name, record)
    except ManifestError:
        return None
    return record


def _build(place: Path, component: Component, on_progress: Callable[[str, float], None]) -> ComponentRecord:
    started = time.monotonic()
    unfinished = place.with_name(place.name + UNFINISHED)
    for leftover in (place, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    directory = unfinished / component.model()
    directory.mkdir(parents=True)
    try:
        component.build(directory, lambda fraction: on_progress(component.name, fraction))
        files = {
            path.relative_to(unfinished).as_posix(): _seal(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        record = ComponentRecord(component.key, files, _peak_bytes(), time.monotonic() - started)
        write_json(unfinished / RECORD, record)
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record


def _seal(path: Path) -> FileRecord:
    """Flush a written file to the disk and take its record."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileRecord(path.stat().st_size, file_sha256(path))


def _assemble(engine: Path, roots: dict[str, Path], manifest: Manifest) -> None:
    # Links come last, not as components are found: ONNX refuses external data with several links, and the engine in
    # `out` stays usable while others are built.
    shutil.rmtree(engine, ignore_errors=True)
    engine.mkdir(parents=True)
    for name, root in roots.items():
        for file in manifest.components[name].files:
            target = engine / file
            target.parent.mkdir(parents=True, exist_ok=True)
            assert not target.exists(), f"two components write {file}"
            try:
                os.link(root / file, target)
            except OSError:
                shutil.copy2(root / file, target)  # a file system without hard links
    write_manifest(engine, manifest)
    remember_verified(engine, manifest)


def _swap(engine: Path, out: Path, replaced: Path) -> None:
    try:
        if out.exists():
            out.rename(replaced)
        engine.rename(out)
    finally:
        _put_back(replaced, out)


def _put_back(replaced: Path, out: Path) -> None:
    """Undo the first half of a swap whose second half never came."""
    if replaced.exists() and not out.exists():
        replaced.rename(out)


def _explain(error: OSError, out: Path) -> EngineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(
            f"the disk of {out.parent} is full; free some space and run the same command again: what is finished "
            f"is kept in .{out.name}.partial"
        )
    return EngineError(f"{out} cannot be built ({error}); mend that, or choose another --out")


def _peak_bytes() -> int:
    # Of this process, or of the largest that it ran: compilers run in their own.
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else 1024 * peak
