"""InternViT: square tiles, each by itself, with learned positions. Pixels: float32 [N,3,S,S], normalised."""

import numpy as np

from engine.bindings import PIXEL_VALUES
from engine.model_config import InternVitConfig


def host_inputs(config: InternVitConfig, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """By the name of the binding."""
    return {PIXEL_VALUES: pixels}


def rows_per_piece(config: InternVitConfig, pixels: np.ndarray) -> int:
    """Of a tile."""
    return config.tokens_per_tile()
