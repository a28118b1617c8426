"""Matrices to few bits, as DequantizeLinear turns them back: only weights are stored so, products keep 16 bits."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from engine.build.columns import column_parts
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
LEAST = {Precision.INT8: -127.0, Precision.INT4: -8.0, Precision.FP8: -448.0}
LARGEST = {Precision.INT8: 127.0, Precision.INT4: 7.0, Precision.FP8: 448.0}
"""Numbers that a scale multiplies; of FP8 (E4M3), all it has."""
SHARES = (1.0, 0.93, 0.86, 0.79, 0.72)
"""Of a block's largest number, what the largest level of INT4 may stand for. With so few levels, finer ones for all
numbers are often worth the largest cut off; the share with the least squared error is taken.
"""


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
    data = np.empty(matrix.shape, STORED[precision])
    if precision is Precision.FP8:
        most = max(np.abs(matrix[:, part]).max() for part in column_parts(outputs))
        scale = _scale(most, precision, dtype)
        for part in column_parts(outputs):
            data[:, part] = divide(matrix[:, part], scale, precision)
        return Quantized(data, scale, axis=0)
    block = inputs
    if precision is Precision.INT4:
        block = next((block for block in BLOCKS if inputs % block == 0 and inputs > block), 0)
        if not block:
            return None
    scales = np.empty((inputs // block, outputs), dtype)
    for part in column_parts(outputs):
        blocks = matrix[:, part].reshape(len(scales), block, -1)
        scales[:, part] = block_scales(blocks, precision, dtype)
        numbers = np.rint(divide(blocks, scales[:, None, part], precision))
        data[:, part] = numbers.reshape(inputs, -1)
    if precision is Precision.INT8:
        return Quantized(data, scales[0], axis=1)
    return Quantized(data, scales, axis=0, block=block)


def block_scales(blocks: np.ndarray, precision: Precision, dtype: np.dtype) -> np.ndarray:
    """[K/block,block,N] -> [K/block,N]"""
    most = np.abs(blocks).max(axis=1)
    best = _scale(most, precision, dtype)
    if precision is Precision.INT4:
        least = _squared_error(blocks, best, precision)
        for share in SHARES[1:]:
            scale = _scale(most * np.float32(share), precision, dtype)
            error = _squared_error(blocks, scale, precision)
            best = np.where(error < least, scale, best)
            np.minimum(error, least, out=least)
    return best


def _squared_error(blocks: np.ndarray, scale: np.ndarray, precision: Precision) -> np.ndarray:
    """[K/block,block,N], [K/block,N] -> [K/block,N]: of a block, once it is turned back."""
    error = divide(blocks, scale[:, None], precision)
    np.rint(error, out=error)
    error *= scale[:, None].astype(np.float32)
    error -= blocks
    return np.square(error, out=error).sum(axis=1)


def divide(values: np.ndarray, scale: np.ndarray, precision: Precision) -> np.ndarray:
    """What is stored, before it is rounded."""
    numbers = values / scale.astype(np.float32)
    return np.clip(numbers, LEAST[precision], LARGEST[precision], out=numbers)


def _scale(most: np.ndarray | np.float32, precision: Precision, dtype: np.dtype) -> np.ndarray:
    """Rounded to `dtype` before it divides, so that what it multiplies later was made for it."""
    scale = np.asarray(most / np.float32(LARGEST[precision])).astype(dtype)
    return np.where(scale > 0, scale, np.ones_like(scale))
