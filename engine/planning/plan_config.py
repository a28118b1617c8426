"""What is to be planned."""

from dataclasses import dataclass, field
from pathlib import Path

from engine.config import GuidanceConfig, ServingConfig
from engine.target import Precision, Target


@dataclass(frozen=True)
class PlanConfig:
    """What to plan. small, large: checkpoint directories, of which `config.json` is read.

    feature_cache: bytes of visual features that each model keeps.
    """

    small: Path
    large: Path
    target: Target = Target.TENSORRT
    precision: Precision = Precision.BF16
    world_size: int = 1
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    feature_cache: int = ServingConfig.feature_cache
