"""Weights for TensorRT: of the activations' type, or matrices in few bits behind a DequantizeLinear."""

import numpy as np
import onnx_ir as ir

from engine.build.compiler import Progress
from engine.build.layers import Weight
from engine.build.weight_file import WeightFile
from engine.build.weight_only import Quantized, quantize
from engine.build.weights import WeightReader, parameters
from engine.config import Precision

HEAD = "lm_head.weight"
"""Turns what a model knows into words: never less than INT8."""


def write_weights(
    model: ir.Model, reader: WeightReader, file: WeightFile, precision: Precision, on_progress: Progress
) -> None:
    """Write the graph's parameters to `file`, one at a time; matrices as `precision` says. Raises CheckpointError."""
    weights = list(parameters(model))
    for index, (name, weight) in enumerate(weights):
        assert weight.dtype is not None
        dtype, data = weight.dtype.numpy(), reader.read(name, weight)
        quantized = None
        if precision not in (Precision.BF16, Precision.FP16) and is_matrix(weight):
            least = Precision.INT8 if name == HEAD and precision is Precision.INT4 else precision
            quantized = quantize(data, least, dtype)
        if quantized is None:
            weight.const_value = file.add(name, data.astype(dtype))
        else:
            _replace(model.graph, weight, quantized, file)
        on_progress((index + 1) / len(weights))


def is_matrix(weight: ir.Value) -> bool:
    """Whether activations are multiplied by it, and nothing else happens to it."""
    return all(node.op_type == "MatMul" and node.inputs[1] is weight for node in weight.consumers())


def _replace(graph: ir.Graph, weight: Weight, quantized: Quantized, file: WeightFile) -> None:
    """Put a DequantizeLinear of what is stored in the weight's place."""
    parts = {"data": quantized.data, "scale": quantized.scale}
    values = [_initializer(graph, f"{weight.name}.{part}", array, file) for part, array in parts.items()]
    attributes = {"axis": quantized.axis} | ({"block_size": quantized.block} if quantized.block else {})
    node = ir.node("DequantizeLinear", values, attributes, name=f"{weight.name}.dequantize")
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{weight.name}.dequantized", weight.type, weight.shape
    for user, index in weight.uses():
        user.replace_input_with(index, result)
    graph.insert_before(graph[0], node)
    del graph.initializers[weight.name or ""]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray, file: WeightFile) -> ir.Value:
    value = ir.Value(name=name, const_value=file.add(name, array))
    graph.register_initializer(value)
    return value
