"""A vision encoder at work: tiles -> visual features."""

from typing import Protocol

import numpy as np

from engine.bindings import PIXEL_VALUES, VISUAL_FEATURES
from engine.dims import UNBOUNDED, Limits
from engine.model_config import VisionConfig
from engine.runtime.arrays import Array
from engine.runtime.executor import Executor

TILES_PER_CALL = 1
"""Tiles that are encoded at once without a plan: on a CPU one fills all cores, and activations grow with each more."""


class Vision(Protocol):
    """A vision encoder of this process, or of several ranks; it is that of `VisionEncoder`."""

    tiles_per_call: int

    def encode(self, pixel_values: np.ndarray) -> np.ndarray: ...


class VisionEncoder:
    """A loaded vision engine with its projector."""

    def __init__(self, executor: Executor, config: VisionConfig, limits: Limits = UNBOUNDED) -> None:
        self._executor, self._config = executor, config
        self.tiles_per_call = limits.tiles().max if limits.planned else TILES_PER_CALL
        """Tiles that one run of the engine takes."""

    def encode(self, pixel_values: np.ndarray) -> Array:
        """float32 [N,3,P,P] -> [N*T,C], the features of all tiles in order."""
        config = self._config
        shape = (len(pixel_values), config.tokens_per_tile(), config.output_size)
        features = self._executor.zeros(VISUAL_FEATURES, shape)
        for start in range(0, len(pixel_values), self.tiles_per_call):
            part = slice(start, start + self.tiles_per_call)
            self._executor.bind_input(PIXEL_VALUES, pixel_values[part])
            self._executor.bind_output(VISUAL_FEATURES, features[part])
            self._executor.run()
        return features.reshape(-1, config.output_size)
