"""What a layer costs as far as no clock is needed: nodes that ONNX Runtime runs, its kernels, bytes of weights.

Of the graph as the session that answers has optimised it; a layer is what an engine with one more has more.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from engine.build.calibrate import language_inputs
from engine.build.language import language_graph
from engine.build.quantize import INT4_BLOCK
from engine.build.targets.onnxruntime import MOST_ERROR, write_engine
from engine.build.vision import vision_graph
from engine.build.weights import parameters
from engine.model_config import LanguageConfig, RopeConfig
from engine.runtime.executor_onnxruntime_session import CPU, open_session
from engine.target import Precision
from tests.builder.test_quantize import Arrays
from tests.oracle import LIMITS
from tests.tiny_vision import TINY_VISION

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 256, 512, 8, 2
LANGUAGE = LanguageConfig(
    HIDDEN, 2, HEADS, KV_HEADS, HIDDEN // HEADS, INTERMEDIATE, 131, 1e-6, RopeConfig(1e4, 1024), qkv_bias=True
)
VISION = replace(TINY_VISION, hidden_size=48)
"""Of a width whose int8 matrices are stored without filling up."""
MATRICES = (
    (HIDDEN, HIDDEN),
    *[(HIDDEN, HIDDEN * KV_HEADS // HEADS)] * 2,
    (HIDDEN, HIDDEN),
    *[(HIDDEN, INTERMEDIATE)] * 2,
    (INTERMEDIATE, HIDDEN),
)
"""Of a layer: query, key, value, output; gate, up, down."""
DECODER = {
    "RMSNormalization": 2,
    "RotaryEmbedding": 2,
    "GroupQueryAttention": 1,
    "QuickGelu": 1,  # SiLU
    "Mul": 1,
    "Add": 2,
}
"""Beside the products and the biases of query, key and value, which float32 and rows of int8 add apart."""
ROWS = ("ReduceMin", "Neg", "ReduceMax", "Max", "Div", "QuantizeLinear")
"""Rows of activations get a scale each and become int8."""


def write(graph: ir.Model, directory: Path, precision: Precision, calibration: dict[str, np.ndarray]) -> Path:
    """An engine of bell-shaped weights, whose norms do nothing."""
    rng = np.random.default_rng(0)
    arrays = {
        name: np.ones(tuple(weight.shape), np.float32)
        if "norm" in name
        else rng.standard_normal(tuple(weight.shape), dtype=np.float32) / np.float32(weight.shape[0] ** 0.5)
        for name, weight in parameters(graph)
    }
    reader: Any = Arrays(arrays)
    path = directory / "engine.onnx"
    quantized: dict[str, Any] = {}
    if precision in MOST_ERROR:
        quantized = {"calibration": calibration, "most_error": MOST_ERROR[precision]}
    write_engine(graph, reader, path, lambda fraction: None, **quantized)
    return path


def language(directory: Path, precision: Precision, layers: int) -> Path:
    config = replace(LANGUAGE, num_layers=layers)
    features = np.random.default_rng(1).standard_normal((20, HIDDEN), dtype=np.float32)
    return write(language_graph(config, LIMITS, (1,)), directory, precision, dict(language_inputs(config, features, 1)))


def vision(directory: Path, precision: Precision, layers: int) -> Path:
    config = replace(VISION, num_layers=layers)
    side = config.image_size
    pixels = np.random.default_rng(1).standard_normal((3, 3, side, side), dtype=np.float32)
    return write(vision_graph(config, LIMITS), directory, precision, {"pixel_values": pixels})


def run_nodes(path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of node is run, in the session that the runtime opens."""
    open_really, optimised = onnxruntime.InferenceSession, path.with_suffix(".optimised.onnx")

    def opened(path: str, options: onnxruntime.SessionOptions, **named: Any) -> onnxruntime.InferenceSession:
        options.optimized_model_filepath = str(optimised)
        return open_really(path, options, **named)

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", opened)
        open_session(path, 1, {CPU: {}})
    return Counter(node.op_type for node in onnx.load(optimised, load_external_data=False).graph.node)


def of_a_layer(
    make: Any, precision: Precision, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], int]:
    """Nodes, and bytes of weights."""
    nodes, sizes = [], []
    for layers in (2, 3):
        (directory / str(layers)).mkdir()
        path = make(directory / str(layers), precision, layers)
        nodes.append(run_nodes(path, monkeypatch))
        sizes.append(path.with_suffix(".weights").stat().st_size)
    assert not nodes[0] - nodes[1]
    return nodes[1] - nodes[0], sizes[1] - sizes[0]


def of_kernels(kernel: str, products: int, quantized: int, biases: int) -> Counter[str]:
    """quantized: activations that products of int8 read, some of them the same; biases: that are added apart."""
    if kernel == "MatMulIntegerToFloat":
        return Counter({kernel: products, "Mul": products, "Add": biases} | dict.fromkeys(ROWS, quantized))
    return Counter({kernel: products, "Add": 0 if kernel == "MatMulNBits" else biases})


@pytest.mark.parametrize(
    ("precision", "kernel", "bytes_per_weight"),
    [
        (Precision.FP32, "MatMul", lambda inputs: 4),
        (Precision.INT8, "MatMulIntegerToFloat", lambda inputs: 1 + 4 / inputs),
        (Precision.INT4, "MatMulNBits", lambda inputs: 1 / 2 + 4 / INT4_BLOCK),
    ],
)
def test_a_layer_of_a_language_model(
    precision: Precision, kernel: str, bytes_per_weight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, size = of_a_layer(language, precision, tmp_path, monkeypatch)
    assert nodes == Counter(DECODER) + of_kernels(kernel, products=len(MATRICES), quantized=4, biases=3)
    weights = sum(inputs * outputs * bytes_per_weight(inputs) for inputs, outputs in MATRICES)
    # Norms, biases, and that tensors begin where pages do.
    assert weights <= size < weights + 4096 * len(MATRICES) + 16 * HIDDEN * 4


@pytest.mark.parametrize(
    ("precision", "kernel"), [(Precision.FP32, "MatMul"), (Precision.INT8, "MatMulIntegerToFloat")]
)
def test_a_layer_of_a_vision_encoder(
    precision: Precision, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, _ = of_a_layer(vision, precision, tmp_path, monkeypatch)
    rest = {"LayerNormalization": 2, "Split": 1, "MultiHeadAttention": 1, "BiasGelu": 1, "Mul": 2, "Add": 2}
    # The bias of the first matrix of the MLP is added with what follows it.
    assert nodes == Counter(rest) + of_kernels(kernel, products=4, quantized=4, biases=3)
