"""Vision encoders, a room each: what the host gives one, and (`graph`) how it is declared.

Who answers needs only the first, so nothing here imports the second.
"""

from typing import Protocol, cast

import numpy as np

from engine.model_config import InternVitConfig, QwenVitConfig, SiglipConfig, VisionConfig
from engine.towers import internvit, qwen2_vit, siglip


class Tower(Protocol):
    """Of pixels float32 [N,...]: N pieces of one picture, all of one shape."""

    def host_inputs(self, config: VisionConfig, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """By the name of the binding."""

    def rows_per_piece(self, config: VisionConfig, pixels: np.ndarray) -> int: ...


def tower_of(config: VisionConfig) -> Tower:
    """The functions of a configuration's vision encoder."""
    match config:
        case InternVitConfig():
            return cast(Tower, internvit)
        case QwenVitConfig():
            return cast(Tower, qwen2_vit)
        case SiglipConfig():
            return cast(Tower, siglip)
