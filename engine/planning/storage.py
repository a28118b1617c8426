"""How many bits a number takes in the engines of each target and precision: what plans go by."""

from dataclasses import dataclass

import ml_dtypes  # noqa: F401 (NumPy then knows bfloat16)
import numpy as np

from engine.build.quantize import BLOCK
from engine.build.weight_only import BLOCKS
from engine.target import Precision, Target

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

    activation: of float activations and of the KV cache.
    """

    matrix: float
    head: float
    other: int
    activation: int


def storage_of(target: Target, precision: Precision) -> Storage:
    """Raises EngineError when the target is not built in this precision."""
    target.check(precision)
    activation = 8 * np.dtype(precision.activations(target)).itemsize
    if target is Target.ONNXRUNTIME:
        # int8: the larger of its two kernels' forms, with a float32 scale for each block.
        matrix = BITS[precision] + (32 / BLOCK if precision is Precision.INT8 else 0)
        return Storage(matrix, matrix, activation, activation)
    return Storage(BITS[precision], max(BITS[precision], BITS[Precision.INT8]), activation, activation)
