"""Running a graph whose weights do not fit in memory: node by node, each weight read when its node needs it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime

from engine.build.graph import IR_VERSION
from engine.build.layers import Weight
from engine.build.weights import WeightReader
from engine.plugins.function import DOMAIN, OPSET

Data = TypeVar("Data")
Progress = Callable[[float], None]


def interpret(
    graph: ir.Graph,
    inputs: Mapping[str, Data],
    output: ir.Value,
    load: Callable[[ir.Value], Data],
    step: Callable[[ir.Node, Sequence[Data | None]], Sequence[Data]],
    on_progress: Progress = lambda fraction: None,
) -> Data:
    """The value of one output; only the nodes it depends on run, and a value is dropped after its last use.

    load: an initializer's value; step: a node's outputs from its inputs. What a value is, they alone know.
    """
    nodes = _ancestors(graph, output)
    uses = Counter(value for node in nodes for value in set(node.inputs) if value is not None)
    uses[output] += 1
    live: dict[ir.Value, Data] = {}
    for index, node in enumerate(nodes):
        needed = dict.fromkeys(value for value in node.inputs if value is not None)
        for value in needed:
            if value not in live:
                assert value.name is not None
                live[value] = inputs[value.name] if value.is_graph_input() else load(value)
        results = step(node, [None if value is None else live[value] for value in node.inputs])
        live |= {value: result for value, result in zip(node.outputs, results, strict=True) if uses[value]}
        for value in needed:
            uses[value] -= 1
            if not uses[value]:
                del live[value]
        on_progress((index + 1) / len(nodes))
    return live[output]


def evaluate(model: ir.Model, reader: WeightReader, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output of a float32 graph, whose parameters are read from the checkpoint. Raises CheckpointError."""
    reader.check(model)

    def step(node: ir.Node, arguments: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return run_node(node, arguments, model)

    def load(value: ir.Value) -> np.ndarray:
        return load_initializer(value, reader)

    return interpret(model.graph, inputs, model.graph.outputs[0], load, step)


def load_initializer(value: ir.Value, reader: WeightReader) -> np.ndarray:
    """A parameter's data from the checkpoint, or a constant's own."""
    if isinstance(value, Weight):
        assert value.name is not None
        return reader.read(value.name, value)
    assert value.const_value is not None
    return value.const_value.numpy()


def run_node(
    node: ir.Node, arguments: Sequence[np.ndarray | None], model: ir.Model, constant: bool = False
) -> list[np.ndarray]:
    """All outputs of one node. `constant`: its inputs after the first are weights that the kernel may pack."""
    names = [f"input_{index}" for index in range(len(arguments))]
    given = {name: array for name, array in zip(names, arguments, strict=True) if array is not None}
    weights = {name: array for name, array in given.items() if constant and name != names[0]}
    values = {name: _value(name, array) for name, array in given.items()}
    copy = ir.Node(
        node.domain,
        node.op_type,
        [values.get(name) for name in names],
        node.attributes.values(),
        num_outputs=len(node.outputs),
    )
    for index, output in enumerate(copy.outputs):
        output.name = f"output_{index}"
    graph = ir.Graph(
        [value for name, value in values.items() if name not in weights],
        copy.outputs,
        nodes=[copy],
        initializers=[_elsewhere(values[name]) for name in weights],
        opset_imports={**OPSET, DOMAIN: 1},
        name="node",
    )
    small = ir.Model(graph, ir_version=IR_VERSION, functions=list(model.functions.values()))
    message = ir.to_proto(small).SerializeToString()
    session = _load(message, weights) if weights else _load_again(message)
    return session.run(None, {name: array for name, array in given.items() if name not in weights})


@lru_cache(maxsize=64)
def _load_again(message: bytes) -> onnxruntime.InferenceSession:
    """A session without weights: the layers of a model consist of the same nodes."""
    return _load(message, {})


def _load(message: bytes, weights: Mapping[str, np.ndarray]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Many sessions take turns: none may hold on to memory or to a core.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(message, options, providers=["CPUExecutionProvider"])


def _value(name: str, array: np.ndarray) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))


def _elsewhere(value: ir.Value) -> ir.Value:
    """The value as an initializer whose data is handed over in memory: a message may not hold 2 GB."""
    assert value.shape is not None
    assert value.dtype is not None
    value.const_value = ir.ExternalTensor("memory", 0, 0, value.dtype, shape=value.shape, name=value.name or "")
    return value


def _ancestors(graph: ir.Graph, output: ir.Value) -> list[ir.Node]:
    """The nodes that `output` depends on, in the order of the graph."""
    wanted = {output}
    nodes = []
    for node in reversed(graph):
        if wanted.intersection(node.outputs):
            nodes.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return nodes[::-1]
