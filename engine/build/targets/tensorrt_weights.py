"""Weights for TensorRT: of the activations' type, or matrices in few bits behind a DequantizeLinear."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

from engine.build.compiler import Progress
from engine.build.storage import BITS, HEAD, Storage, activation_bits
from engine.build.weight_file import WeightFile
from engine.build.weight_only import Quantized, quantize
from engine.build.weights import WeightReader, parameters
from engine.graphs.layers import Weight
from engine.target import Precision, Target

ALIGNMENT = 16
"""Of the outputs of a matrix in few bits: one of odd width is turned back in a kernel of its own, on every call."""


def storage(target: Target, precision: Precision) -> Storage:
    """How large numbers are in plans."""
    activation = activation_bits(target, precision)
    return Storage(BITS[precision], max(BITS[precision], BITS[Precision.INT8]), activation, activation)


def write_weights(
    model: ir.Model, reader: WeightReader, file: WeightFile, precision: Precision, on_progress: Progress
) -> None:
    """Write the graph's parameters to `file`, a few at a time; matrices as `precision` says. Raises CheckpointError."""
    weights = [weight for _, weight in parameters(model)]
    few_bits = precision not in (Precision.BF16, Precision.FP16)
    done = 0
    for products in group_products(model) if few_bits else ():
        matrices = [matrix for product in products if isinstance(matrix := product.inputs[1], Weight)]
        parts = [reader.read(matrix.name or "", matrix) for matrix in matrices]
        padding = np.zeros((len(parts[0]), -sum(part.shape[1] for part in parts) % ALIGNMENT), np.float32)
        least = Precision.INT8 if matrices[0].name == HEAD and precision is Precision.INT4 else precision
        quantized = quantize(np.concatenate([*parts, padding], axis=1), least, matrices[0].numpy_dtype())
        if quantized is not None:
            _replace(model.graph, products, quantized, file)
            done += len(products)
            on_progress(done / len(weights))
    for name, weight in list(parameters(model)):
        weight.const_value = file.add(name, reader.read(name, weight).astype(weight.numpy_dtype()))
        done += 1
        on_progress(done / len(weights))


def group_products(model: ir.Model) -> list[list[ir.Node]]:
    """Products of activations and a matrix, those of the same activations together: one kernel can compute them.

    TensorRT finds that out by itself for matrices of 16 bits only.
    """
    groups: dict[ir.Value, list[ir.Node]] = {}
    for _, weight in parameters(model):
        if is_matrix(weight):
            (product,) = weight.consumers()
            activations = product.inputs[0]
            assert activations is not None
            groups.setdefault(activations, []).append(product)
    return list(groups.values())


def is_matrix(weight: ir.Value) -> bool:
    """Whether activations are multiplied by it once, and nothing else happens to it."""
    users = list(weight.consumers())
    return len(users) == 1 and users[0].op_type == "MatMul" and users[0].inputs[1] is weight


def _replace(graph: ir.Graph, products: Sequence[ir.Node], quantized: Quantized, file: WeightFile) -> None:
    """Put one product with a DequantizeLinear of what is stored in the place of several, and split what comes out."""
    matrices = [product.inputs[1] for product in products]
    name = _join([matrix.name or "" for matrix in matrices if matrix is not None], ".")
    parts = {"data": quantized.data, "scale": quantized.scale}
    stored = [_initializer(graph, f"{name}.{part}", array, file) for part, array in parts.items()]
    attributes = {"axis": quantized.axis} | ({"block_size": quantized.block} if quantized.block else {})
    restored = ir.node("DequantizeLinear", stored, attributes, name=f"{name}.dequantize")
    restored.outputs[0].name = f"{name}.dequantized"
    wide = ir.node(
        "MatMul",
        [products[0].inputs[0], *restored.outputs],
        name=_join([product.name or "" for product in products], "/"),
    )
    wide.outputs[0].name = f"{name}.product"
    widths = [matrix.part.shape(matrix.stored)[1] for matrix in matrices if isinstance(matrix, Weight)]
    if padding := quantized.data.shape[1] - sum(widths):
        widths.append(padding)
    sizes = ir.node("Constant", [], {"value": ir.tensor(widths, dtype=ir.DataType.INT64)})
    sizes.outputs[0].name = f"{name}.widths"
    split = ir.node(
        "Split", [*wide.outputs, *sizes.outputs], {"axis": -1}, num_outputs=len(widths), name=f"{name}.split"
    )
    graph.insert_before(products[0], [restored, wide, sizes, split])
    for index, result in enumerate(split.outputs):
        result.name = f"{name}.part{index}"
    for product, result in zip(products, split.outputs, strict=False):
        before = product.outputs[0]
        result.name, result.type, result.shape = before.name, before.type, before.shape
        replace_all_uses_with(before, result, replace_graph_outputs=True)
    graph.remove(products, safe=True)
    for matrix in matrices:
        assert matrix is not None and matrix.name is not None
        del graph.initializers[matrix.name]


def _join(names: Sequence[str], separator: str) -> str:
    """[`a.q.weight`, `a.k.weight`] -> `a.q+k.weight`"""
    scopes = [name.split(separator) for name in names]
    return separator.join([*scopes[0][:-2], "+".join(scope[-2] for scope in scopes), scopes[0][-1]])


def _initializer(graph: ir.Graph, name: str, array: np.ndarray, file: WeightFile) -> ir.Value:
    value = ir.Value(name=name, const_value=file.add(name, array))
    graph.register_initializer(value)
    return value
