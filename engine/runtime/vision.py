"""A vision encoder at work: pieces of a picture -> visual features."""

from typing import Protocol

import numpy as np

from engine.bindings import VISUAL_FEATURES
from engine.dims import UNBOUNDED, Limits
from engine.families import Packing
from engine.model_config import QwenVitConfig, VisionConfig
from engine.runtime.arrays import Array, array_namespace, device, is_host
from engine.runtime.executor import Executor
from engine.towers import tower_of

PIECES_PER_CALL = 1
"""Pieces that are encoded at once without a plan: on a CPU one fills all cores, and activations grow with each more."""


class Vision(Protocol):
    """A vision encoder of this process, or of several ranks; it is that of `VisionEncoder`."""

    pieces_per_call: int

    def encode(self, pixels: np.ndarray) -> np.ndarray: ...


class VisionEncoder:
    """A loaded vision engine with its projector."""

    def __init__(self, executor: Executor, config: VisionConfig, limits: Limits = UNBOUNDED) -> None:
        self._executor, self._config = executor, config
        self.pieces_per_call = pieces_per_call(config, limits)
        """Pieces that one run of the engine takes."""

    def encode(self, pixels: np.ndarray) -> Array:
        """float32 [N,...] -> [R,C], the rows of all pieces of a picture in order."""
        config, tower = self._config, tower_of(self._config)
        shape = (len(pixels), tower.rows_per_piece(config, pixels), config.output_size)
        features = self._executor.zeros(VISUAL_FEATURES, shape)
        for start in range(0, len(pixels), self.pieces_per_call):
            part = slice(start, start + self.pieces_per_call)
            for name, array in tower.host_inputs(config, pixels[part]).items():
                self._executor.bind_input(name, array)
            self._executor.bind_output(VISUAL_FEATURES, features[part])
            self._executor.run()
        return features.reshape(-1, config.output_size)


def pieces_per_call(config: VisionConfig, limits: Limits) -> int:
    """Of one rank: what a plan takes, of a vision encoder that takes several."""
    return limits.tiles().max if limits.planned and not isinstance(config, QwenVitConfig) else PIECES_PER_CALL


def pack(features: Array, packing: Packing | None) -> Array:
    """[R,C] of all pieces -> [F,C], the rows that a language model reads."""
    if packing is None:
        return features
    xp, where = array_namespace(features), {} if is_host(features) else {"device": device(features)}
    total = None
    for taps, weights in zip(packing.taps.T, packing.weights.T, strict=True):
        rows = xp.take(features, xp.asarray(taps, **where), axis=0)
        part = rows * xp.asarray(weights[:, None], dtype=features.dtype, **where)
        total = part if total is None else total + part
    return total
