"""Which modules of this package something is made by, read from their source: what makes a finished component stale."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import engine

ROOT = Path(engine.__file__).parent


def source_fingerprint(modules: Iterable[str], root: Path = ROOT) -> str:
    """SHA-256 over the source of these modules and of all that they import, wherever in them and however far.

    root: the directory of the package `engine`. A package's `__init__` counts where something is imported from it, not
    where a module beside it is: one that lists families, or targets, is for whoever chooses among them.
    """
    digest = hashlib.sha256()
    for module, source in sorted(sources(modules, root).items()):
        digest.update(b"%s\0%d\0" % (module.encode(), len(source)) + source)
    return digest.hexdigest()


def sources(modules: Iterable[str], root: Path = ROOT) -> dict[str, bytes]:
    """By the names of the modules."""
    found: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = _find(module, root).read_bytes()
            waiting += _imported(found[module], root)
    return found


def _imported(source: bytes, root: Path) -> Iterator[str]:
    """Modules of this package; imports are absolute in it."""
    for name, package in _names(source):
        yield name if _find(name, root).exists() else package


@cache
def _names(source: bytes) -> tuple[tuple[str, str], ...]:
    """What is imported of this package, and the package that a name is imported from, which may be no module itself."""
    names: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names += ((f"{node.module}.{alias.name}", str(node.module)) for alias in node.names)
    return tuple(pair for pair in names if pair[1].partition(".")[0] == engine.__name__)


def _find(module: str, root: Path) -> Path:
    """Its file, which need not be there."""
    place = root.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
