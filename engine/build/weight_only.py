"""Matrices to few bits, as DequantizeLinear turns them back: only weights are stored so, products keep 16 bits."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from engine.config import Precision

BLOCKS = (128, 64, 32)
"""Inputs that share a scale of int4; the largest that divides them all is taken.

Two blocks at least: TensorRT turns a matrix of one back in a kernel of its own, and keeps the result.
"""
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
    largest = np.float32(LARGEST[precision])
    if precision is Precision.INT8:
        scale = _scale(np.abs(matrix).max(axis=0), largest, dtype)
        return Quantized(_round(matrix / scale.astype(np.float32), largest).astype(np.int8), scale, axis=1)
    if precision is Precision.FP8:
        scale = _scale(np.abs(matrix).max(), largest, dtype)
        scaled = np.clip(matrix / scale.astype(np.float32), -largest, largest)
        return Quantized(scaled.astype(ml_dtypes.float8_e4m3fn), scale, axis=0)
    assert precision is Precision.INT4
    inputs, outputs = matrix.shape
    block = next((block for block in BLOCKS if inputs % block == 0 and inputs > block), None)
    if block is None:
        return None
    blocks = matrix.reshape(-1, block, outputs)
    scale = _scale(np.abs(blocks).max(axis=1), largest, dtype)
    numbers = _round(blocks / scale.astype(np.float32)[:, None], largest)
    return Quantized(numbers.reshape(matrix.shape).astype(ml_dtypes.int4), scale, axis=0, block=block)


def _scale(most: np.ndarray, largest: np.float32, dtype: np.dtype) -> np.ndarray:
    """Rounded to `dtype` before it divides, so that what it multiplies later was made for it."""
    scale = np.asarray(most / largest).astype(dtype)
    return np.where(scale > 0, scale, np.ones_like(scale))


def _round(values: np.ndarray, largest: np.float32) -> np.ndarray:
    return np.clip(np.rint(values), -largest, largest)
