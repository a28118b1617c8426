"""Every published size: its dimensions, without weights. InternVL2's are called by their size alone."""

import json
from pathlib import Path
from typing import Any

from engine import families
from engine.families import internvl2
from engine.model_config import ModelConfig

SIZES = ("1b", "2b", "4b", "8b", "26b", "40b", "76b")


def published(size: str) -> dict[str, Any]:
    """The parsed `config.json` of a size."""
    return json.loads((families.published(f"InternVL2-{size}") / "config.json").read_text(encoding="utf-8"))


def read_size(size: str) -> ModelConfig:
    return internvl2.read_config(families.published(f"InternVL2-{size}"), published(size))


def read_published(name: str) -> ModelConfig:
    """Of any family."""
    family, config = families.family_of(families.published(name))
    return family.read_config(families.published(name), config)


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    """A checkpoint directory that holds nothing but this `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
