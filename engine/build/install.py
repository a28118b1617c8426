"""Putting finished components together as an engine directory, at once."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.engine_directory import read_manifest, write_manifest
from engine.errors import ManifestError
from engine.manifest import ComponentRecord, Manifest
from engine.verification import remember_verified

ENGINE = "engine"
REPLACED = "replaced"
"""Of the partial directory: the engine being assembled, and the previous one on its way out."""

Found = dict[str, tuple[Path, ComponentRecord]]
"""By component: where its files are, and their record."""


def undo_swap(out: Path, partial: Path) -> None:
    """After a kill in the middle of `_swap`."""
    _put_back(partial / REPLACED, out)
    shutil.rmtree(partial / REPLACED, ignore_errors=True)


def install(
    out: Path, partial: Path, found: Found, make_manifest: Callable[[dict[str, ComponentRecord]], Manifest]
) -> None:
    """Make `out` of all components."""
    previous = read_previous(out)
    roots = {name: root for name, (root, _) in found.items()}
    records = {name: record for name, (_, record) in found.items()}
    manifest = make_manifest(records)
    if previous is None or previous.components != records:
        _assemble(partial / ENGINE, roots, manifest)
        _swap(partial / ENGINE, out, partial / REPLACED)
    elif replace(manifest, created=previous.created) != previous:
        write_manifest(out, manifest)
    shutil.rmtree(partial, ignore_errors=True)


def read_previous(out: Path) -> Manifest | None:
    """The manifest of the engine that is there, if one is."""
    try:
        return read_manifest(out)
    except ManifestError:
        return None


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
