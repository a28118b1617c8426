"""One checkpoint of a pair, as its engines are to be built."""

from dataclasses import dataclass

from engine.build.checkpoint import Checkpoint
from engine.families.base import Family
from engine.model_config import ModelConfig


@dataclass(frozen=True)
class Role:
    """One of the two models of a pair, as it is to be built."""

    name: str
    checkpoint: Checkpoint
    fingerprint: str
    family: Family
    config: ModelConfig
    prune_layers: tuple[int, ...]
    scores: bool
    notes: tuple[str, ...] = ()
    """What whoever builds it should know, in sentences."""
