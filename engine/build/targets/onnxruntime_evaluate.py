"""Running a graph whose weights do not fit in memory: node by node, each weight read when its node needs it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime

from engine.build.compiler import Progress
from engine.build.graph import IR_VERSION
from engine.build.layers import Weight
from engine.build.weights import WeightReader
from engine.plugins.function import DOMAIN, OPSET

Data = TypeVar("Data")


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


def run_node(node: ir.Node, arguments: Sequence[np.ndarray | None], model: ir.Model) -> list[np.ndarray]:
    """All outputs of one node."""
    inputs = {ir.Value(name=f"input_{index}"): array for index, array in enumerate(arguments)}
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if array is None else value for value, array in inputs.items()],
        node.attributes.values(),
        num_outputs=len(node.outputs),
    )
    given = {value: array for value, array in inputs.items() if array is not None}
    return run_nodes([copy], copy.outputs, given, functions=list(model.functions.values()))


def run_nodes(
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    inputs: Mapping[ir.Value, np.ndarray],
    weights: Mapping[ir.Value, np.ndarray] | None = None,
    functions: Sequence[ir.Function] = (),
) -> list[np.ndarray]:
    """What nodes that belong to no graph compute. `weights` never change: a kernel may pack them."""
    weights = weights or {}
    for value, array in {**inputs, **weights}.items():
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    for index, output in enumerate(outputs):
        output.name = f"output_{index}"
    constants = {value: None for node in nodes for value in node.inputs if value is not None and value.const_value}
    graph = ir.Graph(
        list(inputs),
        outputs,
        nodes=nodes,
        initializers=[*constants, *map(_elsewhere, weights)],
        opset_imports={**OPSET, DOMAIN: 1},
        name="nodes",
    )
    message = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION, functions=functions)).SerializeToString()
    handed = {_name(value): array for value, array in weights.items()}
    session = _load(message, handed) if handed else _load_again(message)
    return session.run(None, {_name(value): array for value, array in inputs.items()})


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


def _elsewhere(value: ir.Value) -> ir.Value:
    """The value as an initializer whose data is handed over in memory: a message may not hold 2 GB."""
    assert value.shape is not None
    assert value.dtype is not None
    value.const_value = ir.ExternalTensor("memory", 0, 0, value.dtype, shape=value.shape, name=value.name or "")
    return value


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _ancestors(graph: ir.Graph, output: ir.Value) -> list[ir.Node]:
    """The nodes that `output` depends on, in the order of the graph."""
    wanted = {output}
    nodes = []
    for node in reversed(graph):
        if wanted.intersection(node.outputs):
            nodes.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return nodes[::-1]
