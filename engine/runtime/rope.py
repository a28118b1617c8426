"""Rotary angles, computed on the host so that every published scaling stays out of the graph."""

import math

import numpy as np

from engine.model_config import RopeConfig, RopeScaling


class RopeTable:
    """Cosines and sines of one model's rotary position embedding."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        assert head_dim % 2 == 0, head_dim
        if config.scaling in (RopeScaling.LONG, RopeScaling.LLAMA3):
            assert config.original_max_positions, config
        if config.scaling is RopeScaling.LONG:
            assert len(config.short_factor) == len(config.long_factor) == head_dim // 2, config
        self._config = config
        self._head_dim = head_dim
        self._exponents = np.arange(0, head_dim, 2) / head_dim
        self._axes = np.repeat(np.arange(config.num_axes()), config.sections or head_dim // 2)
        """Of each frequency, which number of a position it turns by."""

    def cos_sin(self, positions: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B,S] or [B,S,3], [B,S] -> float32 [B,S,D/2] each.

        positions: one number, which stands for all of them, or those of each axis.
        lengths: of the sequence that each row is of when it is computed. DYNAMIC_NTK and LONG depend on it as
        published: beyond the trained length rows turn by other angles, and keys that are cached already keep theirs.
        """
        # float64: float32 angles of position 30,000 would be off by 2e-3
        turns = positions[..., None] if positions.ndim == lengths.ndim else positions[..., self._axes]
        angles = turns * self.frequencies(lengths)
        scale = self._attention_scale()
        return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)

    def stretched(self, lengths: np.ndarray) -> np.ndarray:
        """int64, as `lengths`: what of them frequencies follow from."""
        config = self._config
        match config.scaling:
            case RopeScaling.DYNAMIC_NTK:
                return np.maximum(lengths, config.max_positions)
            case RopeScaling.LONG:
                return (lengths > config.original_max_positions).astype(np.int64)
        return np.zeros_like(lengths)

    def frequencies(self, lengths: np.ndarray) -> np.ndarray:
        """[B,S] -> [B,S,D/2], or [D/2] where they do not matter: radians per position."""
        length = lengths[..., None]
        config = self._config
        match config.scaling:
            case RopeScaling.NONE:
                return self._plain(config.theta)
            case RopeScaling.LINEAR:
                return self._plain(config.theta) / config.factor
            case RopeScaling.DYNAMIC_NTK:
                stretch = config.factor * self.stretched(length) / config.max_positions
                stretch = stretch - (config.factor - 1)
                return self._plain(config.theta * stretch ** (self._head_dim / (self._head_dim - 2)))
            case RopeScaling.LONG:
                divisors = np.where(self.stretched(length), config.long_factor, config.short_factor)
                return self._plain(config.theta) / divisors
            case RopeScaling.LLAMA3:
                return self._llama3(self._plain(config.theta))

    def _plain(self, theta: float | np.ndarray) -> np.ndarray:
        """[] or [B,S,1] -> [D/2] or [B,S,D/2]."""
        return theta**-self._exponents

    def _llama3(self, frequencies: np.ndarray) -> np.ndarray:
        """Low frequencies are divided by the factor, high ones kept, those between interpolated."""
        config = self._config
        assert config.original_max_positions is not None
        turns = config.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return frequencies * (kept + (1 - kept) / config.factor)

    def _attention_scale(self) -> float:
        """What LONG multiplies cosines and sines with: the logits' temperature over the stretched length."""
        config = self._config
        if config.scaling is not RopeScaling.LONG:
            return 1.0
        assert config.original_max_positions is not None
        stretch = config.max_positions / config.original_max_positions
        return math.sqrt(1 + math.log(stretch) / math.log(config.original_max_positions)) if stretch > 1 else 1.0
