"""A vision encoder at work: tiles -> visual features."""

from typing import Protocol

import numpy as np

from engine.bindings import PIXEL_VALUES, VISUAL_FEATURES
from engine.model_config import VisionConfig
from engine.runtime.executor import Executor

TILES_PER_CALL = 1
"""Tiles that are encoded at once: on a CPU one fills all cores, and activations grow with each more."""


class Vision(Protocol):
    """A vision encoder of this process, or of several ranks; the method is that of `VisionEncoder`."""

    def encode(self, pixel_values: np.ndarray) -> np.ndarray: ...


class VisionEncoder:
    """A loaded vision engine with its projector."""

    def __init__(self, executor: Executor, config: VisionConfig) -> None:
        self._executor, self._config = executor, config

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [N,3,P,P] -> float32 [N*T,C], the features of all tiles in order."""
        config = self._config
        features = np.empty((len(pixel_values), config.tokens_per_tile(), config.output_size), np.float32)
        for start in range(0, len(pixel_values), TILES_PER_CALL):
            part = slice(start, start + TILES_PER_CALL)
            self._executor.bind_input(PIXEL_VALUES, pixel_values[part])
            self._executor.bind_output(VISUAL_FEATURES, features[part])
            self._executor.run()
        return features.reshape(-1, config.output_size)
