"""Model families. `family_of` finds the one a checkpoint belongs to, `read_model` reads that checkpoint's configuration
by it; `by_name` is the one an engine was built from."""

from pathlib import Path
from types import ModuleType
from typing import Any, cast

from engine.bounds import shown
from engine.errors import CheckpointError
from engine.families import internvl, internvl2, llava_onevision, llava_qwen, qwen2_5_vl, qwen2_vl
from engine.families.base import Family, Frames, Packing, Part, Pieces, Prompt, Source, Turn, digest_of
from engine.families.fields import Fields, read_object
from engine.model_config import ModelConfig

__all__ = [
    "Family",
    "Frames",
    "Packing",
    "Part",
    "Pieces",
    "Prompt",
    "Source",
    "Turn",
    "by_name",
    "digest_of",
    "family_of",
    "published",
    "published_names",
    "read_model",
]

FAMILIES: dict[str, ModuleType] = {
    "internvl2": internvl2,
    "internvl": internvl,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "llava_onevision": llava_onevision,
    "llava_qwen": llava_qwen,
}
PUBLISHED = "published"
"""In a family's directory, if it has one: a checkpoint directory for each size, of which only `config.json` is kept."""


def by_name(name: str) -> Family:
    """The family's functions. Raises CheckpointError for a family that this version does not know."""
    if name not in FAMILIES:
        raise CheckpointError(f"model family {name!r} is unknown here; known: {', '.join(FAMILIES)}")
    return cast(Family, FAMILIES[name])


def family_of(directory: Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint directory and its parsed `config.json`. Raises CheckpointError."""
    path = directory / "config.json"
    if not path.exists():
        raise CheckpointError(f"{path} is missing; give the directory of a downloaded checkpoint")
    config = read_object(path)
    architectures = config.get("architectures")
    families = [by_name(name) for name in FAMILIES]
    for family in families:
        if isinstance(architectures, list) and family.ARCHITECTURE in architectures:
            return family, config
    known = ", ".join(family.ARCHITECTURE for family in families)
    raise CheckpointError(
        f"{path} names architecture {shown(architectures)}, which no family here reads; known: {known}"
    )


def read_model(directory: Path) -> tuple[Family, ModelConfig]:
    """The family of a checkpoint directory, and what it says of the model. Raises CheckpointError."""
    family, config = family_of(directory)
    with Fields(config, str(directory / "config.json")).named():
        return family, family.read_config(directory, config)


def published_names() -> list[str]:
    """Sizes whose `config.json` comes with the engine, e.g. `InternVL2-26B`, the smallest of a family first."""
    return list(_published())


def published(name: str) -> Path:
    """The directory of a published size, without weights; `InternVL2-26B`, or only `26B` if one family has that, in
    upper or lower case.

    Raises CheckpointError for a name that is not known.
    """
    sizes = {known.lower(): directory for known, directory in _published().items()}
    short = [known for known in sizes if known.rpartition("-")[2] == name.lower()]
    if name.lower() in sizes:
        return sizes[name.lower()]
    if len(short) == 1:
        return sizes[short[0]]
    raise CheckpointError(
        f"{name} is no checkpoint directory and no published size; known: {', '.join(published_names())}"
    )


def _published() -> dict[str, Path]:
    directories: list[Path] = []
    for module in FAMILIES.values():
        sizes = Path(str(module.__file__)).parent.glob(f"{PUBLISHED}/*")
        directories += sorted(sizes, key=lambda size: float(size.name.rpartition("-")[2].rstrip("B")))
    return {directory.name: directory for directory in directories}
