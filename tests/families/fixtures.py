"""Every published size of InternVL2: its dimensions, without weights."""

import json
from pathlib import Path
from typing import Any

from engine import families
from engine.families import internvl2
from engine.model_config import ModelConfig

SIZES = ("1b", "2b", "4b", "8b", "26b", "40b", "76b")


def published(size: str) -> dict[str, Any]:
    """The parsed `config.json` of a size."""
    return json.loads((families.published(size) / "config.json").read_text(encoding="utf-8"))


def read_size(size: str) -> ModelConfig:
    return internvl2.read_config(families.published(size), published(size))


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    """A checkpoint directory that holds nothing but this `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
