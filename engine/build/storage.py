"""How many bits a number takes in an engine, by target and precision: what plans go by."""

from dataclasses import dataclass, replace

import ml_dtypes  # noqa: F401 (NumPy then knows bfloat16)
import numpy as np

from engine.build.weight_only import BLOCKS
from engine.target import Precision, Target

HEAD = "lm_head.weight"
"""Turns what a model knows into words: never less than INT8."""
BITS: dict[Precision, float] = {
    Precision.FP32: 32,
    Precision.BF16: 16,
    Precision.FP16: 16,
    Precision.INT8: 8,
    Precision.FP8: 8,
    # A scale of 16 bits for each block.
    Precision.INT4: 4 + 16 / BLOCKS[0],
}
"""Of a matrix's weight, with the scales that are not too few to count."""


@dataclass(frozen=True)
class Storage:
    """Bits per number. matrix, head, other: of a matrix's weight, of the head's, of any other parameter.

    activation: of float activations and of the KV cache. vision: of a matrix's weight in a vision encoder, where it is
    another.
    """

    matrix: float
    head: float
    other: int
    activation: int
    vision: float | None = None

    def of_vision(self) -> "Storage":
        """Of a vision encoder's engine."""
        return self if self.vision is None else replace(self, matrix=self.vision)


def activation_bits(target: Target, precision: Precision) -> int:
    """Of one number of an activation."""
    return 8 * np.dtype(target.activations(precision)).itemsize
