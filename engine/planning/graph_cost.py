"""What a declared graph costs at given sizes of its dimensions: bytes, operations, sums over ranks. No weights needed.

Sizes: a number for the name of each dynamic dimension. Of a KV buffer it is the tokens in it after the call.
"""

import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from engine.build.storage import HEAD
from engine.build.targets.tensorrt_weights import is_matrix
from engine.build.weight_file import place
from engine.build.weights import parameters
from engine.graphs.layers import Weight
from engine.planning.storage import Storage

Sizes = Mapping[str, int]
Graph = ir.Model


def weight_bytes(model: ir.Model, storage: Storage) -> int:
    """Of the file that holds the graph's parameters."""
    end = 0
    for _, weight in parameters(model):
        size = parameter_bytes(weight, storage)
        end = place(end, size) + size
    return end


def parameter_bytes(weight: Weight, storage: Storage) -> int:
    bits = (storage.head if weight.name == HEAD else storage.matrix) if is_matrix(weight) else storage.other
    return math.ceil(math.prod(_static(weight)) * bits / 8)


def read_bytes(model: ir.Model, storage: Storage) -> int:
    """Parameters that a call reads: all but the embedding, of which it looks up a few rows."""
    read = (weight for _, weight in parameters(model) if any(node.op_type != "Gather" for node in weight.consumers()))
    return sum(parameter_bytes(weight, storage) for weight in read)


def peak_activation_bytes(model: ir.Model, sizes: Sizes, storage: Storage) -> int:
    """The most that intermediate values take at once when nodes run in order and each value goes after its last use.

    Attention itself is fused: no matrix of all rows and keys is made. Scored rows times keys are one. What a target
    computes in one kernel or in place takes less. The few small values whose sizes the declaration leaves open
    (masks of scored rows) are not counted.
    """
    graph = model.graph
    outputs = set(graph.outputs)
    uses = {value: len(set(value.consumers())) for node in graph for value in node.outputs}
    live = peak = 0
    for node in graph:
        live += sum(_nbytes(value, sizes, storage) for value in node.outputs if value not in outputs)
        peak = max(peak, live + _score_bytes(node, sizes, storage))
        for value in {*node.inputs, *node.outputs}:
            if value is None or value not in uses or value in outputs:
                continue
            uses[value] -= value in set(node.inputs)
            if not uses[value]:
                live -= _nbytes(value, sizes, storage)
                del uses[value]
    return peak


def operations(model: ir.Model, sizes: Sizes) -> int:
    """Multiplications and additions of matrix products, convolutions and attention; the rest is a trifle to them."""
    return sum(_node_operations(node, sizes) for node in model.graph)


def all_reduces(model: ir.Model, sizes: Sizes, storage: Storage) -> Iterator[int]:
    """Bytes of each tensor that is summed over the ranks in one call."""
    for node in model.graph:
        if node.op_type == "all_reduce":
            yield _nbytes(node.outputs[0], sizes, storage)


def _node_operations(node: ir.Node, sizes: Sizes) -> int:
    match node.op_type:
        case "MatMul":
            return 2 * _count(node.outputs[0], sizes) * _static(node.inputs[1])[0]
        case "Conv":
            return 2 * _count(node.outputs[0], sizes) * math.prod(_static(node.inputs[1])[1:])
        case "full_attention":
            tiles, tokens, width = _sizes(node.inputs[0], sizes)
            return 4 * tiles * width * tokens * tokens
        case "Attention":
            windows, places, width = _sizes(node.inputs[0], sizes)
            return 4 * windows * width * places * places
        case "cached_attention":
            batch, rows, width = _sizes(node.inputs[0], sizes)
            past = _sizes(node.inputs[3], sizes)[2] - rows
            return 4 * batch * width * (rows * past + rows * (rows + 1) // 2)
        case _:
            return 0


def _score_bytes(node: ir.Node, sizes: Sizes, storage: Storage) -> int:
    """Of the logits of scored rows, as they are multiplied, and of their probabilities in float32; [B,H,R,T] each."""
    if node.op_type != "received_attention":
        return 0
    (batch, rows, width), (_, _, keys, head_dim) = (_sizes(value, sizes) for value in node.inputs[:2])
    return (storage.activation // 8 + 4) * batch * rows * width // head_dim * keys


def _nbytes(value: ir.Value, sizes: Sizes, storage: Storage) -> int:
    if value.shape is None or any(not isinstance(dim, int) and dim.value is None for dim in value.shape):
        return 0
    assert value.dtype is not None, "a value of known shape has a type"
    bits = storage.activation if value.dtype is ir.DataType.FLOAT else value.dtype.bitwidth
    return _count(value, sizes) * bits // 8


def _count(value: ir.Value, sizes: Sizes) -> int:
    return math.prod(_sizes(value, sizes))


def _sizes(value: ir.Value | None, sizes: Sizes) -> list[int]:
    assert value is not None
    assert value.shape is not None
    return [dim if isinstance(dim, int) else sizes[str(dim)] for dim in value.shape]


def _static(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a parameter."""
    assert value is not None
    assert value.shape is not None
    return value.shape.numpy()
