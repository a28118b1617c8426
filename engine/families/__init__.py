"""Model families. `family_of` finds the one a checkpoint belongs to; `by_name` the one an engine was built from."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from engine.errors import CheckpointError
from engine.families import internvl2
from engine.families.base import Family, Prompt, Source, Tiles

__all__ = ["Family", "Prompt", "Source", "Tiles", "by_name", "family_of"]

FAMILIES: dict[str, ModuleType] = {"internvl2": internvl2}


def by_name(name: str) -> Family:
    """The family's functions. Raises CheckpointError for a family that this version does not know."""
    if name not in FAMILIES:
        raise CheckpointError(f"model family {name!r} is unknown here; known: {', '.join(FAMILIES)}")
    return cast(Family, FAMILIES[name])


def family_of(directory: Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint directory and its parsed `config.json`. Raises CheckpointError."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the directory of a downloaded checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again") from None
    for name in FAMILIES:
        if isinstance(config, dict) and by_name(name).recognises(config):
            return by_name(name), config
    architectures = config.get("architectures") if isinstance(config, dict) else None
    raise CheckpointError(
        f"{path} names architecture {architectures}, which no family here reads; known: {', '.join(FAMILIES)}"
    )
