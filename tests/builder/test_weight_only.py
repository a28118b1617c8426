"""Weight-only formats: what DequantizeLinear makes of them, computed here in float64, stays within half a step."""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from engine.build.weight_only import Quantized, quantize
from engine.target import Precision

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def dequantize(quantized: Quantized) -> np.ndarray:
    """ONNX's DequantizeLinear without a zero point."""
    data, scale = quantized.data.astype(np.float64), quantized.scale.astype(np.float64)
    if quantized.block:
        scale = np.repeat(scale, quantized.block, axis=quantized.axis)
    elif scale.ndim:
        scale = np.expand_dims(scale, 1 - quantized.axis)
    return data * scale


def bell(inputs: int, outputs: int) -> np.ndarray:
    """Columns of very different sizes, one of them zero."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((inputs, outputs), dtype=np.float32) * rng.uniform(1e-3, 10, outputs)
    matrix[:, outputs // 2] = 0
    return matrix.astype(np.float32)


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)])
@pytest.mark.parametrize("shape", [(5, 123), (123, 5), (1, 1)])
def test_int8_has_a_scale_for_each_column(shape: tuple[int, int], dtype: np.dtype) -> None:
    matrix = bell(*shape)
    quantized = quantize(matrix, Precision.INT8, dtype)
    assert quantized is not None
    assert (quantized.data.dtype, quantized.scale.dtype, quantized.scale.shape) == (np.int8, dtype, shape[1:])
    scale = quantized.scale.astype(np.float64)
    # Half a step, and what a scale rounded down cuts off at the ends.
    assert (np.abs(dequantize(quantized) - matrix) <= scale * (0.5 + 127 / 256)).all()
    assert_array_equal(dequantize(quantized)[:, shape[1] // 2], 0)


@pytest.mark.parametrize(("inputs", "block"), [(256, 128), (128, 64), (64, 32), (192, 64), (160, 32), (896, 128)])
def test_int4_has_a_scale_for_each_block(inputs: int, block: int) -> None:
    matrix = bell(inputs, 7)
    quantized = quantize(matrix, Precision.INT4, BFLOAT16)
    assert quantized is not None
    assert (quantized.block, quantized.scale.shape) == (block, (inputs // block, 7))
    assert quantized.data.dtype == ml_dtypes.int4
    levels = np.arange(-8, 8)[:, None, None] * np.repeat(quantized.scale.astype(np.float64), block, axis=0)
    nearest = np.abs(levels - matrix).min(axis=0)
    assert_allclose(np.abs(dequantize(quantized) - matrix), nearest, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("inputs", [256, 128, 64])
def test_the_scales_of_int4_lose_little_more_than_the_best_would(inputs: int) -> None:
    """Squared error of a block, and of its own best scale, searched for finely."""
    matrix = bell(inputs, 40)
    quantized = quantize(matrix, Precision.INT4, BFLOAT16)
    assert quantized is not None
    blocks = matrix.astype(np.float64).reshape(-1, quantized.block, 40)
    most = np.abs(blocks).max(axis=1)
    shares = np.linspace(0.5, 1.05, 200)[:, None, None]
    scales = (shares * np.where(most > 0, most, 1) / 7)[:, :, None]
    errors = np.square(np.clip(np.rint(blocks / scales), -8, 7) * scales - blocks).sum(axis=2)
    actual = np.square(dequantize(quantized).reshape(blocks.shape) - blocks).sum(axis=1)
    plain = errors[np.abs(shares[:, 0, 0] - 1).argmin()].sum()
    assert (actual <= 1.25 * errors.min(axis=0) + 1e-12).all()
    assert actual.sum() <= 1.05 * errors.min(axis=0).sum()
    assert actual.sum() < 0.9 * plain


@pytest.mark.parametrize("inputs", [31, 32, 48, 100])
def test_int4_needs_two_blocks(inputs: int) -> None:
    assert quantize(bell(inputs, 3), Precision.INT4, BFLOAT16) is None


def test_fp8_has_one_scale() -> None:
    matrix = bell(123, 45)
    quantized = quantize(matrix, Precision.FP8, BFLOAT16)
    assert quantized is not None
    assert (quantized.data.dtype, quantized.scale.shape) == (ml_dtypes.float8_e4m3fn, ())
    assert np.abs(quantized.data.astype(np.float32)).max() > 400, "the whole range is in use"
    # Three bits of mantissa; below the smallest normal number, half a step of it.
    bound = np.maximum(np.abs(matrix) / 16, float(quantized.scale) * 2.0**-10) * 1.01
    assert (np.abs(dequantize(quantized) - matrix) <= bound).all()
