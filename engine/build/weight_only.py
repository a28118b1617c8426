"""Matrices to few bits, as DequantizeLinear turns them back: only weights are stored so, products keep 16 bits."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from engine.build.quantize import column_parts
from engine.target import Precision

BLOCKS = (128, 64, 32)
"""Inputs that share a scale of int4; the largest that divides them all is taken.

Two blocks at least: TensorRT turns a matrix of one back in a kernel of its own, and keeps the result.
"""
STORED = {
    Precision.INT8: np.dtype(np.int8),
    Precision.INT4: np.dtype(ml_dtypes.int4),
    Precision.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
}
LARGEST = {Precision.INT8: 127.0, Precision.INT4: 7.0, Precision.FP8: 448.0}
"""Symmetric: -largest..largest times a scale; of FP8 (E4M3), its largest number."""


@dataclass(frozen=True)
class Quantized:
    """A matrix [K,N] in few bits, and what DequantizeLinear needs to turn it back.

    scale: INT8 [N], INT4 [K/block,N], FP8 []; axis: that the scale runs along; block: 0 unless blocked.
    """

    data: np.ndarray
    scale: np.ndarray
    axis: int
    block: int = 0


def quantize(matrix: np.ndarray, precision: Precision, dtype: np.dtype) -> Quantized | None:
    """float32 [K,N] -> INT8 by column, INT4 by block of a column, FP8 as a whole; None if INT4 finds no block for K.

    dtype: of the scale, hence of what it is turned back to.
    """
    inputs, outputs = matrix.shape
    largest = np.float32(LARGEST[precision])
    data = np.empty(matrix.shape, STORED[precision])
    if precision is Precision.FP8:
        scale = _scale(max(np.abs(matrix[:, part]).max() for part in column_parts(outputs)), largest, dtype)
        for part in column_parts(outputs):
            data[:, part] = np.clip(matrix[:, part] / scale.astype(np.float32), -largest, largest)
        return Quantized(data, scale, axis=0)
    block = inputs
    if precision is Precision.INT4:
        block = next((block for block in BLOCKS if inputs % block == 0 and inputs > block), 0)
        if not block:
            return None
    scales = np.empty((inputs // block, outputs), dtype)
    for part in column_parts(outputs):
        blocks = matrix[:, part].reshape(len(scales), block, -1)
        scales[:, part] = _scale(np.abs(blocks).max(axis=1), largest, dtype)
        numbers = np.rint(blocks / scales[:, None, part].astype(np.float32))
        data[:, part] = np.clip(numbers, -largest, largest).reshape(inputs, -1)
    if precision is Precision.INT8:
        return Quantized(data, scales[0], axis=1)
    return Quantized(data, scales, axis=0, block=block)


def _scale(most: np.ndarray | np.float32, largest: np.float32, dtype: np.dtype) -> np.ndarray:
    """Rounded to `dtype` before it divides, so that what it multiplies later was made for it."""
    scale = np.asarray(most / largest).astype(dtype)
    return np.where(scale > 0, scale, np.ones_like(scale))
