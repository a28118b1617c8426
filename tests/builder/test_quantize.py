"""int8 matrices: kernels against dequantised float64, and the choice between them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from onnx.reference import ReferenceEvaluator
from onnxscript import nn

from engine.bindings import Binding, Bindings
from engine.build.graph import declare, finish
from engine.build.layers import Linear, Weight
from engine.build.quantize import MAX_ERROR, Fidelity, Kernel, choose, fidelity, pack
from engine.build.targets.onnxruntime import write_engine
from engine.dims import Dim
from engine.plugins.function import OPSET

KERNELS = {"DynamicQuantizeMatMul": Kernel.PER_TENSOR, "MatMulNBits": Kernel.PER_BLOCK, "MatMul": Kernel.FLOAT32}


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


def build_matrix(directory: Path, matrix: np.ndarray, calibration: np.ndarray | None, bias: bool = True) -> Path:
    """An engine of one matrix [K,N] and its bias 0, 1, 2, ...; without calibration it stays float32."""
    inputs, outputs = matrix.shape
    dims = (Dim("batch", 1, 1, 4), Dim("sequence", 1, 1, 99))
    bound = Bindings(
        (Binding("x", "float32", (*dims, inputs)),),
        (Binding("y", "float32", (*dims, outputs)),),
    )
    builder, values = declare("matrix", bound, OPSET)
    model = finish(builder, bound, {"y": OneMatrix((inputs, outputs), bias)(builder.op, values["x"])})
    reader: Any = Arrays({"proj.weight": matrix, "proj.bias": np.arange(outputs, dtype=np.float32)})
    path = directory / "matrix.onnx"
    write_engine(model, reader, path, lambda fraction: None, None if calibration is None else {"x": calibration})
    return path


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def read_report(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".quantization.json").read_text())


def initializers(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantize_activations(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """What is left of activations, float64: ONNX's own DynamicQuantizeLinear, or symmetric blocks of 128."""
    if kernel is Kernel.PER_TENSOR:
        node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
        numbers, scale, zero = map(np.asarray, ReferenceEvaluator(node).run(None, {"x": x}))
        return (numbers.astype(np.float64) - zero) * scale
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 128)]).reshape(*x.shape[:-1], -1, 128)
    scale = np.maximum(np.abs(blocks).max(-1, keepdims=True) / np.float32(127), 1e-30)
    numbers = np.rint(blocks / scale).astype(np.float64)
    return (numbers * scale).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def dequantize(kernel: Kernel, data: np.ndarray, scale: np.ndarray, inputs: int) -> np.ndarray:
    """-> float64 [K,N]"""
    if kernel is Kernel.PER_TENSOR:
        return data.astype(np.float64) * scale
    blocks = (data.astype(np.float64) - 128) * scale[:, :, None]
    return blocks.reshape(len(data), -1)[:, :inputs].T


def bell(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def with_huge_row(activations: np.ndarray) -> np.ndarray:
    """The first token's activations are enormous, as in trained decoders."""
    activations = activations.copy()
    activations[0, 0] *= 1000
    return activations


@pytest.mark.parametrize("kernel", [Kernel.PER_TENSOR, Kernel.PER_BLOCK])
@pytest.mark.parametrize("shape", [(1, 1), (5, 123), (123, 5), (128, 33), (130, 2050), (384, 64)])
def test_packed_matrix_is_within_half_a_step(kernel: Kernel, shape: tuple[int, int]) -> None:
    matrix = bell(*shape)
    matrix[:, 0] = 0
    packed = pack(kernel, matrix)
    restored = dequantize(kernel, packed.data, packed.scale, shape[0])
    step = np.abs(matrix).max(axis=0) / 127
    assert (np.abs(restored - matrix) <= step / 2 + 1e-7).all()
    assert np.isfinite(packed.scale).all()
    assert (packed.scale > 0).all()


@pytest.mark.parametrize("kernel", [Kernel.PER_TENSOR, Kernel.PER_BLOCK])
@pytest.mark.parametrize("batch", [(1, 1), (1, 7), (3, 5)])
@pytest.mark.parametrize("shape", [(40, 17), (123, 5), (200, 64), (384, 131)])
def test_kernel_equals_dequantised_float64(
    tmp_path: Path, kernel: Kernel, batch: tuple[int, int], shape: tuple[int, int]
) -> None:
    calibration = bell(1, 30, shape[0])
    path = build_matrix(
        tmp_path, bell(*shape), calibration if kernel is Kernel.PER_TENSOR else with_huge_row(calibration)
    )
    assert [KERNELS[node.op_type] for node in onnx.load(path).graph.node] == [kernel]  # bias within
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


def test_calibration_decides_which_kernel(tmp_path: Path) -> None:
    matrix, benign = bell(384, 64), bell(1, 50, 384, seed=1)
    # A huge activation in every block, though it leads nowhere: neither scale leaves digits for the others.
    blind = matrix.copy()
    blind[::128] = 0
    poisoned = benign.copy()
    poisoned[..., ::128] = 1000
    cases = [
        (Kernel.PER_TENSOR, matrix, benign),
        (Kernel.PER_BLOCK, matrix, with_huge_row(benign)),
        (Kernel.FLOAT32, blind, poisoned),
    ]
    for expected, weights, activations in cases:
        path = build_matrix(tmp_path, weights, activations)
        entry = read_report(path)["matrices"]["proj.weight"]
        assert entry["kernel"] == expected
        assert [node.op_type for node in onnx.load(path).graph.node if KERNELS.get(node.op_type)] == [
            name for name, kernel in KERNELS.items() if kernel is expected
        ]
        assert entry["fidelity"].keys() == {"per_tensor", "per_block"}
        if expected is Kernel.FLOAT32:
            assert initializers(path).keys() == {"proj.weight", "proj.bias"}
            exact = activations @ weights + np.arange(64)
            assert_allclose(run(path, x=activations), exact, rtol=1e-4, atol=1e-3)


def test_choice_at_its_limits() -> None:
    def measured(per_tensor: float, per_block: float) -> dict[Kernel, Fidelity]:
        return {Kernel.PER_TENSOR: Fidelity(1, per_tensor), Kernel.PER_BLOCK: Fidelity(1, per_block)}

    fast, accurate = MAX_ERROR[Kernel.PER_TENSOR], MAX_ERROR[Kernel.PER_BLOCK]
    assert choose(measured(fast, 0)) is Kernel.PER_TENSOR
    assert choose(measured(np.nextafter(fast, 1), accurate)) is Kernel.PER_BLOCK
    assert choose(measured(1, np.nextafter(accurate, 1))) is Kernel.FLOAT32


def test_fidelity_counts_every_row_the_same() -> None:
    expected = np.array([[3.0, 4.0], [3000.0, 4000.0], [0.0, 0.0]], np.float32)
    actual = np.array([[4.0, -3.0], [3000.0, 4000.0], [1.0, 0.0]], np.float32)
    assert fidelity(actual, expected) == Fidelity(0.5, round(float(np.sqrt(2) / 2), 6))
    assert fidelity(actual[2:], expected[2:]) == Fidelity(1.0, 0.0)


def test_weights_take_a_quarter_of_float32(tmp_path: Path) -> None:
    matrix = bell(896, 640)
    calibrations = {Kernel.PER_TENSOR: bell(1, 20, 896), Kernel.PER_BLOCK: with_huge_row(bell(1, 20, 896))}
    for kernel, calibration in calibrations.items():
        path = build_matrix(tmp_path, matrix, calibration)
        assert read_report(path)["matrices"]["proj.weight"]["kernel"] == kernel
        assert 0.25 < path.with_suffix(".weights").stat().st_size / matrix.nbytes < 0.27
