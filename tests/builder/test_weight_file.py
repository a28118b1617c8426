"""Weight files, against ONNX Runtime and the onnx library."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from engine.build.weight_file import WeightFile


def save_gemm(directory: Path, weights: dict[str, np.ndarray]) -> Path:
    """y = Concat(Gemm(x, float(w), b), float(scale) * none): each weight is external data of one file."""
    with WeightFile(directory / "language.weights") as file:
        initializers = [
            ir.Value(name=name, const_value=(tensor := file.add(name, array)), type=ir.TensorType(tensor.dtype))
            for name, array in weights.items()
        ]
    w, scale, b, none = initializers
    for value, array in zip(initializers, weights.values(), strict=True):
        value.shape = ir.Shape(array.shape)
    float_type = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float_type, shape=ir.Shape([2, len(weights["w"])]))
    nodes = [ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}) for value in (w, scale)]
    nodes.append(ir.node("Mul", [nodes[0].outputs[0], nodes[1].outputs[0]]))
    nodes.append(ir.node("Gemm", [x, nodes[2].outputs[0], b]))
    nodes.append(ir.node("Concat", [nodes[3].outputs[0], none], attributes={"axis": 0}))
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", float_type
    graph = ir.Graph([x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="gemm")
    ir.save(ir.Model(graph, ir_version=10), directory / "language.onnx")
    return directory / "language.onnx"


@pytest.mark.parametrize("shape", [(3, 5), (123, 257), (128, 512)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, ml_dtypes.bfloat16, np.float32])
def test_weight_file_runs_in_onnxruntime(tmp_path: Path, shape: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(shape[0])
    weights = {
        "w": rng.integers(0, 100, shape).astype(dtype),
        "scale": np.array(0.125, ml_dtypes.bfloat16),
        "b": rng.standard_normal(shape[1], np.float32),
        "none": np.zeros((0, shape[1]), np.float32),
    }
    path = save_gemm(tmp_path, weights)
    x = rng.standard_normal((2, shape[0]), np.float32)
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ (weights["w"].astype(np.float32) * 0.125) + weights["b"], rtol=1e-4, atol=1e-3)
    assert path.stat().st_size < 2000  # the weights are not in the graph
    for initializer in onnx.load(path).graph.initializer:
        assert initializer.raw_data == weights[initializer.name].tobytes()


def test_weight_file_aligns_and_packs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {
        "small": rng.integers(0, 9, 3).astype(np.int8),
        "just_small": rng.integers(0, 9, 65535).astype(np.uint8),
        "large": rng.integers(0, 9, 65536).astype(np.uint8),
        "strided": rng.standard_normal((9, 8)).astype(np.float32).T[::3],
        "transposed": rng.standard_normal((9, 8)).astype(np.float32).T,
        "scalar": np.array(2.5, np.float16),
        "large_bf16": rng.standard_normal((300, 200)).astype(ml_dtypes.bfloat16),
    }
    with WeightFile(tmp_path / "some.weights") as file:
        tensors = {name: file.add(name, array) for name, array in given.items()}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.offset is not None
        alignment = 4096 if name.startswith("large") else 64
        assert tensor.offset == -(-end // alignment) * alignment
        end = tensor.offset + given[name].nbytes
        assert tensor.location == "some.weights"
        assert tensor.numpy().dtype == given[name].dtype
        np.testing.assert_array_equal(tensor.numpy(), given[name], strict=True)
    assert (tmp_path / "some.weights").stat().st_size == end


def test_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left"), WeightFile(Path("/dev/full")) as file:
        file.add("w", np.zeros(1 << 20, np.float32))
