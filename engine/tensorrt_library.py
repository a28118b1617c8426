"""The package that stands for a TensorRT target; nothing else needs to know that there are two."""

from importlib import import_module
from typing import Any

from engine.errors import EngineError
from engine.target import Target


def load_library(target: Target) -> Any:
    """The package's module. Raises EngineError that names what to install."""
    library = target.traits.library
    assert library is not None, "only targets with a library are asked for one"
    try:
        return import_module(library.module)
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise EngineError(
            f"target {target} needs its library, which is not installed ({reason}); "
            f"pip install 'sgl-engine[{library.extra}]'"
        ) from None
