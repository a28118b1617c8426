"""What a kind of hostile input is, and which kinds there are."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, cast

import tools.fuzz

Case = Any
"""One input: bytes, or a description in what JSON knows. Shrinking cuts bytes, lists, dictionaries, numbers, text."""


class Kind(Protocol):
    """A module of this package with these names."""

    NAME: str
    """Of `--kind`."""

    def make(self, seed: int) -> Case:
        """The same case for the same seed; cheap."""

    def run(self, case: Case) -> None:
        """Give the case to the code that reads it. Raises EngineError; whatever else is raised is a fault.

        What the case holds beside the point, as files, is made here and removed again.
        """


def kinds() -> dict[str, Kind]:
    """All modules of the package that name a kind, by that name."""
    modules = [import_module(f"{tools.fuzz.__name__}.{module.name}") for module in _modules()]
    found = [cast(Kind, module) for module in modules if hasattr(module, "NAME")]
    return {kind.NAME: kind for kind in sorted(found, key=lambda kind: kind.NAME)}


def _modules() -> list[Any]:
    # `__main__` runs when it is imported.
    return [module for module in iter_modules(tools.fuzz.__path__) if not module.name.startswith("_")]
