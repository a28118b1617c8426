"""Staged output: components are built beside the engine directory, kept across interruptions, put in place at once.

While a build runs, `.<out>.partial` holds finished components, one directory each, and `.<out>.lock` keeps others out.
At the end the engine is assembled there by hard links and renamed to `out`; a kill at any moment leaves `out` whole,
or absent with the previous engine safe in the partial directory, from where the next build puts it back.
"""

import errno
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import Any

from engine.bounds import is_line
from engine.build.install import Found, install, read_previous, undo_swap
from engine.build.lock import BuildRunning, locked
from engine.build_flags import BuildFlag
from engine.engine_directory import RECORD, WHOLE, is_engine_directory, partial_directory, read_json, staged, write_json
from engine.errors import EngineError, ManifestError
from engine.manifest import ComponentRecord, FileRecord, Manifest
from engine.verification import file_sha256, verify, verify_component

UNFINISHED = ".unfinished"
PAUSE = 0.02
"""Seconds between two looks whether others have finished."""


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
    """Names of the components that were in `out`, left by an interrupted build, or built now.

    missing: those that others are still to build; until then `out` is as it was.
    """

    cached: tuple[str, ...]
    resumed: tuple[str, ...]
    built: tuple[str, ...]
    missing: tuple[str, ...]
    seconds: float
    peak_bytes: int
    """Most memory that this process, or a compiler that it ran, ever used."""
    notes: tuple[str, ...] = ()
    """What whoever builds it should know, in sentences."""


def build_components(
    out: Path,
    components: Sequence[Component],
    make_manifest: Callable[[dict[str, ComponentRecord]], Manifest],
    on_progress: Callable[[str, float], None] = lambda name, fraction: None,
    wanted: Collection[str] | None = None,
) -> BuildReport:
    """Make `out` the engine directory of these components, building only those that are not there yet.

    on_progress: gets a component's name and how much of it is done, 0..1.
    wanted: build these alone, while others build theirs; who finishes last makes `out`. None is all.
    Raises EngineError when another build is writing `out`, `out` is something else, or the disk is full.
    """
    started = time.monotonic()
    refuse_foreign(out)
    out = out.resolve()
    partial = partial_directory(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            if wanted is None:
                with locked(out):
                    undo_swap(out, partial)
                    found, built = _obtain(out, partial, components, on_progress)
                    install(out, partial, found, make_manifest)
                    missing: tuple[str, ...] = ()
            else:
                mine = [component for component in components if component.name in wanted]
                with locked(out, "+".join(sorted(wanted)).replace("/", ".")), locked(out, shared=True):
                    found, built = _obtain(out, partial, mine, on_progress)
                    for root in {root for root, _ in found.values()} - {out}:
                        write_json(root / WHOLE, [component.name for component in components])
                missing = _install_last(out, partial, components, make_manifest)
        finally:
            with suppress(OSError):
                partial.rmdir()  # only if nothing in it can be resumed
    except OSError as error:
        raise _explain(error, out) from error
    cached = tuple(name for name, (root, _) in found.items() if root == out)
    resumed = tuple(name for name in found if name not in cached and name not in built)
    return BuildReport(cached, resumed, built, missing, time.monotonic() - started, _peak_bytes())


def refuse_unnameable(*paths: Path) -> None:
    """Raises EngineError for a path that no message and no manifest could hold."""
    for path in paths:
        if not is_line(str(path)):
            raise EngineError(f"the path {str(path)!r} is not one line of UTF-8; give the directory another name")


def refuse_foreign(out: Path) -> None:
    """Raises EngineError when `out` is no place for an engine or cannot be written; asked before anything slow."""
    try:
        out = out.resolve()
        if not out.name or (out.exists() and not out.is_dir()):
            raise EngineError(
                f"{out} is {'a file' if out.name else 'the root directory'}; choose another {BuildFlag.OUT}"
            )
        if out.exists() and any(out.iterdir()) and not is_engine_directory(out):
            raise EngineError(
                f"{out} is not empty and not an engine directory; choose another {BuildFlag.OUT} or empty it first"
            )
        with suppress(FileNotFoundError):
            os.lstat(partial_directory(out))  # whose name may be too long, though that of `out` is not
        for directory in {next(parent for parent in out.parents if parent.exists()), *([out] if out.exists() else [])}:
            with TemporaryFile(dir=directory):
                pass
    except OSError as error:
        raise _explain(error, out) from error


def _obtain(
    out: Path, partial: Path, components: Sequence[Component], on_progress: Callable[[str, float], None]
) -> tuple[Found, tuple[str, ...]]:
    """Find or build each component; the names of those built."""
    previous = read_previous(out)
    found: Found = {}
    built = []
    for component in components:
        have = _find(out, partial, previous, component)
        if have is None:
            place = staged(partial, component.name)
            have = place, _build(place, component, on_progress)
            built.append(component.name)
        found[component.name] = have
        on_progress(component.name, 1.0)
    return found, tuple(built)


def _find(
    out: Path, partial: Path, previous: Manifest | None, component: Component
) -> tuple[Path, ComponentRecord] | None:
    """A finished component: in the engine as it is, or left by an interrupted build."""
    if record := _find_cached(out, previous, component):
        return out, record
    place = staged(partial, component.name)
    record = _find_resumable(place, component)
    return (place, record) if record else None


def _install_last(
    out: Path,
    partial: Path,
    components: Sequence[Component],
    make_manifest: Callable[[dict[str, ComponentRecord]], Manifest],
) -> tuple[str, ...]:
    """Make `out` if nothing is missing any more; what is."""
    while True:
        try:
            with locked(out):
                undo_swap(out, partial)
                previous = read_previous(out)
                have = {component.name: _find(out, partial, previous, component) for component in components}
                found = {name: one for name, one in have.items() if one is not None}
                if len(found) == len(components):
                    install(out, partial, found, make_manifest)
                return tuple(name for name in have if name not in found)
        except BuildRunning:
            with suppress(BuildRunning), locked(out, shared=True):  # nobody moves what is built
                if missing := _without_record(out, partial, components):
                    return missing  # who builds still finishes later, and makes `out` then
        time.sleep(PAUSE)  # others are about to finish


def _without_record(out: Path, partial: Path, components: Sequence[Component]) -> tuple[str, ...]:
    """Components that nobody has finished, by the records alone."""
    previous = read_previous(out)
    records = dict(previous.components) if previous else {}
    for component in components:
        with suppress(ManifestError):
            records[component.name] = read_json(staged(partial, component.name) / RECORD, ComponentRecord)
    return tuple(c.name for c in components if c.name not in records or records[c.name].key != c.key)


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


def _explain(error: OSError, out: Path) -> EngineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(
            f"the disk of {out.parent} is full; free some space and run the same command again: what is finished "
            f"is kept in .{out.name}.partial"
        )
    return EngineError(f"{out} cannot be built ({error}); mend that, or choose another {BuildFlag.OUT}")


def _peak_bytes() -> int:
    # Of this process, or of the largest that it ran: compilers run in their own.
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else 1024 * peak
