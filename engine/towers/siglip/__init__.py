"""SigLIP as LLaVA uses it: square tiles, each by itself, with learned positions, and behind each the end of a line.

Pixels: float32 [N,3,S,S], normalised.
"""

import numpy as np

from engine.bindings import PIXEL_VALUES
from engine.model_config import SiglipConfig


def host_inputs(config: SiglipConfig, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """By the name of the binding."""
    return {PIXEL_VALUES: pixels}


def rows_per_piece(config: SiglipConfig, pixels: np.ndarray) -> int:
    """Of a tile."""
    return config.rows_per_tile()
