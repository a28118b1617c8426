"""Matrices to int8 and int4: their forms, how their error is measured, and which one a matrix gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from engine.build.columns import column_parts
from engine.build.weight_only import block_scales, divide
from engine.target import Precision

BLOCK = 64
"""Inputs that share a scale in `MatrixKernel.PER_BLOCK`; a last, shorter block is filled with zeros.

No more than 64: from 128 on, MatMulNBits on AVX-512 adds up a row in another order when no other row is beside it.
"""
ZERO_POINT = 128
"""Of `MatrixKernel.PER_BLOCK`, whose numbers are unsigned."""
INT4_BLOCK = 32
"""Inputs that share a scale in `MatrixKernel.INT4`; filled up likewise.

No more than 32: from 64 on, MatMulNBits of 4 bits adds up a row in another order when it stands alone at the end of an
odd number of rows.
"""
INT4_ZERO_POINT = 8
LEVELS = 127
"""Symmetric: -127..127 times a scale."""
DECIMALS = 6


class MatrixKernel(StrEnum):
    """What multiplies by a matrix, fastest first. Activations are always quantized when they arrive.

    Every kernel computes a row from that row alone, to the last bit: no request changes the answer of another.
    """

    INT4 = "int4"
    """One scale for `INT4_BLOCK` weights of a column in 4 bits, one for as many activations of a row."""
    PER_ROW = "per_row"
    """One scale for a column of weights, one for a row of activations: an outlier costs its own row digits."""
    PER_BLOCK = "per_block"
    """One scale for `BLOCK` weights of a column, one for `BLOCK` activations of a row."""
    FLOAT32 = "float32"


MAX_ERROR = {MatrixKernel.PER_ROW: 0.02, MatrixKernel.PER_BLOCK: 0.05}
"""Relative errors of a matrix's output that are accepted of int8, in the order of `MatrixKernel`.

Bell-shaped weights and activations give either kernel about 0.01; PER_ROW is refused once outliers double that. Past
0.05 (a cosine of 0.9987) one matrix alone would cost the model the 0.999 that its last logits shall keep.
"""
MAX_ERROR_INT4 = {MatrixKernel.INT4: 0.13} | MAX_ERROR
"""Of int4. Bell-shaped weights give about 0.08; a matrix with outliers is int8."""


@dataclass(frozen=True)
class Packed:
    """A matrix [K,N]: PER_ROW int8 [K,N], float32 [N]; PER_BLOCK uint8 [N,blocks,BLOCK], float32 [N,blocks]; INT4 uint8
    [N,blocks,INT4_BLOCK/2], of two numbers each, and float32 [N,blocks].
    """

    data: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Fidelity:
    """How close an approximation's rows are to float32's, on average over the rows.

    Every row counts the same: one with huge values cannot hide the error of the others.
    """

    cosine: float
    relative_error: float


@dataclass(frozen=True)
class MatrixReport:
    """kernel: what the matrix got; fidelity: of its output on the calibration input, for each int8 kernel."""

    kernel: MatrixKernel
    fidelity: dict[MatrixKernel, Fidelity]


@dataclass(frozen=True)
class QuantizationReport:
    """output: the engine's output that `fidelity` compares with float32's on the calibration input, `rows` of it."""

    output: str
    rows: int
    fidelity: Fidelity
    max_error: dict[MatrixKernel, float]
    matrices: dict[str, MatrixReport]


def pack(kernel: MatrixKernel, matrix: np.ndarray) -> Packed:
    """float32 [K,N] -> the same as a kernel wants it."""
    inputs, outputs = matrix.shape
    if kernel is MatrixKernel.PER_ROW:
        packed = Packed(np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32))
        for part in column_parts(outputs):
            numbers, packed.scale[part] = _symmetric(matrix[:, part], axis=0)
            packed.data[:, part] = numbers
        return packed
    is_int4 = kernel is MatrixKernel.INT4
    block = INT4_BLOCK if is_int4 else BLOCK
    blocks = -(-inputs // block)
    stored = block // 2 if is_int4 else block
    packed = Packed(np.empty((outputs, blocks, stored), np.uint8), np.empty((outputs, blocks), np.float32))
    for part in column_parts(outputs):
        columns = np.zeros((len(packed.scale[part]), blocks * block), np.float32)
        columns[:, :inputs] = matrix[:, part].T
        columns = columns.reshape(-1, blocks, block)
        if is_int4:
            numbers, packed.scale[part] = _least_error(columns)
            unsigned = (numbers + INT4_ZERO_POINT).astype(np.uint8)
            packed.data[part] = unsigned[..., ::2] | unsigned[..., 1::2] << 4
        else:
            numbers, packed.scale[part] = _symmetric(columns, axis=2)
            packed.data[part] = numbers + ZERO_POINT
    return packed


def fidelity(actual: np.ndarray, expected: np.ndarray) -> Fidelity:
    """[...,N] x2 -> over all rows; rows that are zero in float32 have no direction and do not count."""
    actual, expected = (rows.reshape(-1, rows.shape[-1]) for rows in (actual, expected))
    norm = np.sqrt(_dot(expected, expected))
    counted = norm > 0
    if not counted.any():
        return Fidelity(1.0, 0.0)
    actual, expected, norm = actual[counted], expected[counted], norm[counted]
    lengths = np.maximum(norm * np.sqrt(_dot(actual, actual)), np.finfo(np.float64).tiny)
    difference = actual - expected
    cosine = (_dot(actual, expected) / lengths).mean()
    error = (np.sqrt(_dot(difference, difference)) / norm).mean()
    return Fidelity(round(float(cosine), DECIMALS), round(float(error), DECIMALS))


def choose(measured: Mapping[MatrixKernel, Fidelity], most: Mapping[MatrixKernel, float] = MAX_ERROR) -> MatrixKernel:
    """The fastest kernel whose error is accepted, else float32. most: errors that are, the fastest kernel first."""
    for kernel, limit in most.items():
        if measured[kernel].relative_error <= limit:
            return kernel
    return MatrixKernel.FLOAT32


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[R,N] x2 -> float64 [R]"""
    return np.multiply(a, b).sum(axis=1, dtype=np.float64)


def _symmetric(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -127..127 as float32, and the scale along `axis` that turns them back."""
    scale = np.abs(values).max(axis=axis) / np.float32(LEVELS)
    divisor = np.where(scale > 0, scale, np.float32(1))
    return np.rint(values / np.expand_dims(divisor, axis)), divisor


def _least_error(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N,blocks,block] -> whole numbers -8..7 as float32, and the scales [N,blocks], by least squared error."""
    turned = np.ascontiguousarray(blocks.transpose(1, 2, 0))
    scale = block_scales(turned, Precision.INT4, np.dtype(np.float32))
    numbers = np.rint(divide(turned, scale[:, None], Precision.INT4))
    return numbers.transpose(2, 0, 1), scale.T
