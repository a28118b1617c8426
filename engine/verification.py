"""Whether the files of an engine directory are still what was built; hashes that were computed are remembered."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from engine.engine_directory import MANIFEST, STAMP, read_json, write_json
from engine.errors import ManifestError
from engine.manifest import MODELS, ComponentRecord, FileRecord, Manifest
from engine.remedy import rebuild

CHUNK_BYTES = 1 << 22
NAMED = 4
"""Files in one sentence; a rank has hundreds."""


@dataclass(frozen=True)
class _Stamp:
    """A file's state when its hash was last computed: as long as it is unchanged, so is the hash."""

    bytes: int
    mtime_ns: int
    inode: int
    sha256: str


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


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raises ManifestError that names the files that are missing or of another size; none is read."""
    records = [item for component in manifest.components.values() for item in component.files.items()]
    wrong = [f"{name} {reason}" for name, record in records if (reason := _difference(directory / name, record))]
    if wrong:
        named = ", ".join(wrong[:NAMED]) + (f" and {len(wrong) - NAMED} more are not as built" * (len(wrong) > NAMED))
        raise ManifestError(f"of {directory}, {named}; {rebuild(directory, manifest)} (only what is wrong is rebuilt)")


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
        if reason := _difference(path, expected):
            raise fail(file, reason)
        try:
            # The state before hashing: a later change of the file then differs from it.
            stamp = _stamp(path, expected.sha256)
            if known.get(file) != stamp and file_sha256(path) != expected.sha256:
                raise fail(file, "was altered: its SHA-256 differs from the manifest's")
        except OSError as error:
            raise fail(file, f"cannot be read ({error.strerror})") from None
        stamps[file] = stamp
    return stamps


def _difference(path: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file at a glance, in words."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if size == expected.bytes else f"has {size} bytes instead of {expected.bytes}"


def _stamp(path: Path, sha256: str) -> _Stamp:
    stat = path.stat()
    return _Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256)


def _read_stamps(directory: Path) -> dict[str, _Stamp]:
    try:
        return read_json(directory / STAMP, dict[str, _Stamp])
    except ManifestError:
        return {}


def _write_stamps(directory: Path, stamps: dict[str, _Stamp]) -> None:
    try:
        write_json(directory / STAMP, stamps)
    except OSError:
        return  # a read-only engine directory is as good, only slower to open
