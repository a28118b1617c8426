"""int8 matrices: kernels against dequantised float64, and the choice between them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnxscript import nn

from engine.bindings import Binding, Bindings
from engine.build.quantize import MAX_ERROR, Fidelity, MatrixKernel, choose, fidelity, pack
from engine.build.targets.onnxruntime import write_engine
from engine.dims import Dim
from engine.graphs.declaration import declare, finish
from engine.graphs.layers import Linear, Weight
from engine.plugins.function import OPSET

KERNELS = {
    "MatMulIntegerToFloat": MatrixKernel.PER_ROW,
    "MatMulNBits": MatrixKernel.PER_BLOCK,
    "MatMul": MatrixKernel.FLOAT32,
}


class Arrays:
    """Stands in for a WeightReader: parameters from memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays

    def check(self, model: ir.Model) -> None:
        pass

    def read(self, name: str, weight: Weight) -> np.ndarray:
        return self.arrays[name]


class OneMatrix(nn.Module):
    """[B,S,K] -> [B,S,N]"""

    def __init__(self, shape: tuple[int, int], bias: bool) -> None:
        super().__init__("")
        self.proj = Linear(*shape, bias=bias)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.proj(op, x)


def build_matrix(
    directory: Path,
    matrix: np.ndarray,
    calibration: np.ndarray | None,
    bias: bool = True,
    most_error: Mapping[MatrixKernel, float] = MAX_ERROR,
) -> Path:
    """An engine of one matrix [K,N] and its bias 0, 1, 2, ...; without calibration it stays float32."""
    arrays = {"proj.weight": matrix, "proj.bias": np.arange(matrix.shape[1], dtype=np.float32)}
    return build_module(directory, OneMatrix(matrix.shape, bias), arrays, matrix.shape, calibration, most_error)


def build_module(
    directory: Path,
    module: nn.Module,
    arrays: Mapping[str, np.ndarray],
    shape: Sequence[int],
    calibration: np.ndarray | None,
    most_error: Mapping[MatrixKernel, float] = MAX_ERROR,
) -> Path:
    """An engine of x [B,S,K] -> y [B,S,N]"""
    inputs, outputs = shape
    dims = (Dim("batch", 1, 1, 4), Dim("sequence", 1, 1, 99))
    bound = Bindings(
        (Binding("x", "float32", (*dims, inputs)),),
        (Binding("y", "float32", (*dims, outputs)),),
    )
    builder, values = declare("matrix", bound, OPSET)
    model = finish(builder, bound, {"y": module(builder.op, values["x"])})
    reader: Any = Arrays(arrays)
    path = directory / "matrix.onnx"
    x = None if calibration is None else {"x": calibration}
    write_engine(model, reader, path, lambda fraction: None, x, most_error=most_error)
    return path


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    return open_session(path).run(None, inputs)[0]


def read_report(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".quantization.json").read_text())


def initializers(path: Path) -> dict[str, np.ndarray]:
    """Parameters, without the constants of an engine."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: array for name, array in arrays.items() if not name.startswith("quantized_rows.")}


def kernels(path: Path) -> list[MatrixKernel]:
    """What multiplies by parameters in an engine."""
    return [KERNELS[node.op_type] for node in onnx.load(path).graph.node if node.op_type in KERNELS]


def quantize_activations(kernel: MatrixKernel, x: np.ndarray) -> np.ndarray:
    """What is left of activations, float64: a symmetric scale for each row, or for each 64 numbers of it."""
    size = x.shape[-1] if kernel is MatrixKernel.PER_ROW else 64
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)]).reshape(*x.shape[:-1], -1, size)
    scale = np.maximum(np.abs(blocks).max(-1, keepdims=True) / np.float32(127), 1e-30)
    numbers = np.rint(blocks / scale).astype(np.float64)
    return (numbers * scale).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def dequantize(kernel: MatrixKernel, data: np.ndarray, scale: np.ndarray, inputs: int) -> np.ndarray:
    """-> float64 [K,N]"""
    if kernel is MatrixKernel.PER_ROW:
        return data.astype(np.float64) * scale
    blocks = (data.astype(np.float64) - 128) * scale[:, :, None]
    return blocks.reshape(len(data), -1)[:, :inputs].T


def bell(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def needing(kernel: MatrixKernel, matrix: np.ndarray, activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same such that this kernel is the fastest that is close enough: what is huge in a row leads nowhere.

    In a row's first place it costs the row digits, in every block's also the blocks.
    """
    every, huge = {
        MatrixKernel.PER_ROW: (1, 1),
        MatrixKernel.PER_BLOCK: (len(matrix), 15),
        MatrixKernel.FLOAT32: (64, 1000),
    }[kernel]
    if huge > 1:
        matrix, activations = matrix.copy(), activations.copy()
        matrix[::every], activations[..., ::every] = 0, huge
    return matrix, activations


@pytest.mark.parametrize("kernel", [MatrixKernel.PER_ROW, MatrixKernel.PER_BLOCK])
@pytest.mark.parametrize("shape", [(1, 1), (5, 123), (123, 5), (128, 33), (130, 2050), (384, 64)])
def test_packed_matrix_is_within_half_a_step(kernel: MatrixKernel, shape: tuple[int, int]) -> None:
    matrix = bell(*shape)
    matrix[:, 0] = 0
    packed = pack(kernel, matrix)
    restored = dequantize(kernel, packed.data, packed.scale, shape[0])
    step = np.abs(matrix).max(axis=0) / 127
    assert (np.abs(restored - matrix) <= step / 2 + 1e-7).all()
    assert np.isfinite(packed.scale).all()
    assert (packed.scale > 0).all()


@pytest.mark.parametrize("kernel", [MatrixKernel.PER_ROW, MatrixKernel.PER_BLOCK])
@pytest.mark.parametrize("batch", [(1, 1), (1, 7), (3, 5)])
@pytest.mark.parametrize("shape", [(40, 17), (123, 5), (200, 64), (384, 131)])
def test_kernel_equals_dequantised_float64(
    tmp_path: Path, kernel: MatrixKernel, batch: tuple[int, int], shape: tuple[int, int]
) -> None:
    path = build_matrix(tmp_path, *needing(kernel, bell(*shape), bell(1, 30, shape[0])))
    assert kernels(path) == [kernel]
    assert ("Add" in [node.op_type for node in onnx.load(path).graph.node]) == (kernel is MatrixKernel.PER_ROW)
    weights = initializers(path)
    assert weights.keys() == {"proj.weight.int8", "proj.weight.scale", "proj.bias"}
    x = bell(*batch, shape[0], seed=1)
    matrix = dequantize(kernel, weights["proj.weight.int8"], weights["proj.weight.scale"], shape[0])
    expected = quantize_activations(kernel, x) @ matrix + np.arange(shape[1])
    assert_allclose(run(path, x=x), expected, rtol=1e-5, atol=1e-4)


def test_sums_do_not_saturate(tmp_path: Path) -> None:
    """All at the end of their range: pairs of products exceed 16 bits, and where those clip, another kernel is used."""
    x = np.ones((1, 3, 1024), np.float32)
    path = build_matrix(tmp_path, np.ones((1024, 8), np.float32), x, bias=False)
    assert_allclose(run(path, x=x), np.full((1, 3, 8), 1024), rtol=1e-5)


@pytest.mark.parametrize("kernel", [MatrixKernel.PER_ROW, MatrixKernel.PER_BLOCK])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(123, 5), (640, 130), (1000, 2050)])
def test_a_row_does_not_depend_on_the_others(
    tmp_path: Path, kernel: MatrixKernel, threads: int, shape: tuple[int, int]
) -> None:
    """Bit by bit: alone, in any company and at any place, beside rows that are huge, tiny, zero and not finite."""
    session = open_session(build_matrix(tmp_path, *needing(kernel, bell(*shape), bell(1, 30, shape[0]))), threads)
    x = bell(96, shape[0], seed=1) * np.geomspace(1e-30, 1e30, 96, dtype=np.float32)[:, None]
    x[[5, 40]] = 0
    x[-1, 3] = np.inf
    alone = np.concatenate([session.run(None, {"x": row[None, None]})[0][0] for row in x])
    assert np.isfinite(alone[:-1]).all()
    assert (alone[[5, 40]] == np.arange(shape[1])).all()
    for batch, length in ((1, 2), (3, 1), (4, 2), (1, 7), (1, 16), (2, 33), (1, 96)):
        for start in (0, 29, 96 - batch * length):
            rows = slice(start, start + batch * length)
            if rows.stop <= len(x):
                (y,) = session.run(None, {"x": x[rows].reshape(batch, length, -1)})
                assert_array_equal(y.reshape(-1, shape[1]), alone[rows])


def test_matrices_that_read_the_same_share_its_quantization(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__("")
            self.a, self.b = Linear(40, 7), Linear(40, 7)

        def forward(self, op: Any, x: ir.Value) -> ir.Value:
            return op.Add(self.a(op, x), self.b(op, x))

    a, b = bell(40, 7), bell(40, 7, seed=1)
    path = build_module(tmp_path, Two(), {"a.weight": a, "b.weight": b}, (40, 7), bell(1, 30, 40))
    assert kernels(path) == [MatrixKernel.PER_ROW] * 2
    assert [node.op_type for node in onnx.load(path).graph.node].count("QuantizeLinear") == 1
    x = bell(2, 3, 40, seed=2)
    assert_allclose(run(path, x=x), x @ (a + b), rtol=0, atol=0.5)


def test_calibration_decides_which_kernel(tmp_path: Path) -> None:
    for expected in (*MAX_ERROR, MatrixKernel.FLOAT32):
        weights, activations = needing(expected, bell(384, 64), bell(1, 50, 384, seed=1))
        path = build_matrix(tmp_path, weights, activations)
        entry = read_report(path)["matrices"]["proj.weight"]
        assert entry["kernel"] == expected
        assert kernels(path) == [expected]
        assert entry["fidelity"].keys() == {"per_row", "per_block"}
        if expected is MatrixKernel.FLOAT32:
            assert initializers(path).keys() == {"proj.weight", "proj.bias"}
            exact = activations @ weights + np.arange(64)
            assert_allclose(run(path, x=activations), exact, rtol=1e-4, atol=1e-3)


def test_a_huge_row_costs_the_others_nothing(tmp_path: Path) -> None:
    """The first token's activations are enormous in trained decoders."""
    x = bell(1, 20, 384)
    errors = []
    for factor in (1, 1000):
        x[0, 0] *= factor
        path = build_matrix(tmp_path, bell(384, 64), x)
        errors.append(read_report(path)["matrices"]["proj.weight"]["fidelity"]["per_row"]["relative_error"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_choice_at_its_limits() -> None:
    def measured(per_row: float, per_block: float) -> dict[MatrixKernel, Fidelity]:
        return {MatrixKernel.PER_ROW: Fidelity(1, per_row), MatrixKernel.PER_BLOCK: Fidelity(1, per_block)}

    fast, accurate = MAX_ERROR[MatrixKernel.PER_ROW], MAX_ERROR[MatrixKernel.PER_BLOCK]
    assert choose(measured(fast, 0)) is MatrixKernel.PER_ROW
    assert choose(measured(np.nextafter(fast, 1), accurate)) is MatrixKernel.PER_BLOCK
    assert choose(measured(1, np.nextafter(accurate, 1))) is MatrixKernel.FLOAT32


def test_fidelity_counts_every_row_the_same() -> None:
    expected = np.array([[3.0, 4.0], [3000.0, 4000.0], [0.0, 0.0]], np.float32)
    actual = np.array([[4.0, -3.0], [3000.0, 4000.0], [1.0, 0.0]], np.float32)
    assert fidelity(actual, expected) == Fidelity(0.5, round(float(np.sqrt(2) / 2), 6))
    assert fidelity(actual[2:], expected[2:]) == Fidelity(1.0, 0.0)


def test_weights_take_a_quarter_of_float32(tmp_path: Path) -> None:
    for kernel, most in ((MatrixKernel.PER_ROW, 0.26), (MatrixKernel.PER_BLOCK, 0.27)):
        matrix, calibration = needing(kernel, bell(896, 640), bell(1, 20, 896))
        path = build_matrix(tmp_path, matrix, calibration)
        assert kernels(path) == [kernel]
        assert 0.25 < path.with_suffix(".weights").stat().st_size / matrix.nbytes < most
