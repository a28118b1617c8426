"""Matrices to int8: the two storage forms, how their error is measured, and which one a matrix gets."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

BLOCK = 64
"""Inputs that share a scale in `MatrixKernel.PER_BLOCK`; a last, shorter block is filled with zeros.

No more than 64: from 128 on, MatMulNBits on AVX-512 adds up a row in another order when no other row is beside it.
"""
ZERO_POINT = 128
"""Of `MatrixKernel.PER_BLOCK`, whose numbers are unsigned."""
LEVELS = 127
"""Symmetric: -127..127 times a scale."""
COLUMNS_AT_ONCE = 1024
DECIMALS = 6


class MatrixKernel(StrEnum):
    """What multiplies by a matrix, fastest first. Activations are always quantized when they arrive.

    Every kernel computes a row from that row alone, to the last bit: no request changes the answer of another.
    """

    PER_ROW = "per_row"
    """One scale for a column of weights, one for a row of activations: an outlier costs its own row digits."""
    PER_BLOCK = "per_block"
    """One scale for `BLOCK` weights of a column, one for `BLOCK` activations of a row."""
    FLOAT32 = "float32"


MAX_ERROR = {MatrixKernel.PER_ROW: 0.02, MatrixKernel.PER_BLOCK: 0.05}
"""Relative errors of a matrix's output that are accepted, in the order of `MatrixKernel`.

Bell-shaped weights and activations give either kernel about 0.01; PER_ROW is refused once outliers double that. Past
0.05 (a cosine of 0.9987) one matrix alone would cost the model the 0.999 that its last logits shall keep.
"""


@dataclass(frozen=True)
class Packed:
    """A matrix [K,N]: PER_ROW int8 [K,N], float32 [N]; PER_BLOCK uint8 [N,blocks,BLOCK], float32 [N,blocks]."""

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
    """float32 [K,N] -> the same as an int8 kernel wants it."""
    inputs, outputs = matrix.shape
    if kernel is MatrixKernel.PER_ROW:
        packed = Packed(np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32))
        for part in column_parts(outputs):
            numbers, packed.scale[part] = _symmetric(matrix[:, part], axis=0)
            packed.data[:, part] = numbers
        return packed
    assert kernel is MatrixKernel.PER_BLOCK
    blocks = -(-inputs // BLOCK)
    packed = Packed(np.empty((outputs, blocks, BLOCK), np.uint8), np.empty((outputs, blocks), np.float32))
    for part in column_parts(outputs):
        columns = np.zeros((len(packed.scale[part]), blocks * BLOCK), np.float32)
        columns[:, :inputs] = matrix[:, part].T
        numbers, packed.scale[part] = _symmetric(columns.reshape(-1, blocks, BLOCK), axis=2)
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


def choose(measured: dict[MatrixKernel, Fidelity]) -> MatrixKernel:
    """The fastest kernel whose error is accepted, else float32."""
    for kernel, limit in MAX_ERROR.items():
        if measured[kernel].relative_error <= limit:
            return kernel
    return MatrixKernel.FLOAT32


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[R,N] x2 -> float64 [R]"""
    return np.multiply(a, b).sum(axis=1, dtype=np.float64)


def column_parts(outputs: int) -> Iterator[slice]:
    """Columns that are worked on at once, so that temporaries stay a small part of a matrix."""
    for start in range(0, outputs, COLUMNS_AT_ONCE):
        yield slice(start, start + COLUMNS_AT_ONCE)


def _symmetric(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -127..127 as float32, and the scale along `axis` that turns them back."""
    scale = np.abs(values).max(axis=axis) / np.float32(LEVELS)
    divisor = np.where(scale > 0, scale, np.float32(1))
    return np.rint(values / np.expand_dims(divisor, axis)), divisor
