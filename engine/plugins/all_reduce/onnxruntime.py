"""Lowering of `sgl::all_reduce` for ONNX Runtime, which has no such op on a CPU: the graph is cut at every one.

What lies between two of them is a stage, a model of its own; whoever runs the stages sums over the ranks in between.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from engine.bindings import partial_sum
from engine.plugins.all_reduce.contract import NAME
from engine.plugins.function import DOMAIN


def cut(model: ir.Model) -> list[ir.Model]:
    """The stages in the order in which they run; the model alone if it has no all-reduce.

    Stage i writes its share of the i-th sum as `partial_sum(i)`, and later stages read the sum under the same name.
    Other values that a later stage needs keep their name.
    """
    graph = model.graph
    sums = [node for node in graph if node.domain == DOMAIN and node.op_type == NAME]
    if not sums:
        return [model]
    names: dict[ir.Value | None, str] = {}
    for index, node in enumerate(sums):
        names |= dict.fromkeys((node.inputs[0], node.outputs[0]), partial_sum(index))
    stages = _split(graph, sums)
    stage_of = {value: index for index, nodes in enumerate(stages) for node in nodes for value in node.outputs}
    outputs: list[list[ir.Value]] = [[] for _ in stages]
    inputs: list[list[ir.Value]] = []
    for index, nodes in enumerate(stages):
        wanted = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
        crossing = [value for value in wanted if stage_of.get(value) != index and not value.is_initializer()]
        inputs.append(crossing)
        for value in crossing:
            if value in stage_of and value not in outputs[stage_of[value]]:
                outputs[stage_of[value]].append(value)
    for index, node in enumerate(sums):
        assert node.inputs[0] is not None
        outputs[index].append(node.inputs[0])
    for value in graph.outputs:
        outputs[stage_of[value]].append(value)
    return [_stage(model, *part, names) for part in zip(stages, inputs, outputs, strict=True)]


def _split(graph: ir.Graph, sums: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """The nodes before the first all-reduce, those up to the second, and so on."""
    stages: list[list[ir.Node]] = [[]]
    for node in graph:
        if node in sums:
            stages.append([])
        else:
            stages[-1].append(node)
    return stages


def _stage(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    names: Mapping[ir.Value | None, str],
) -> ir.Model:
    for value in (*inputs, *outputs):
        # Whoever runs the stages allocates what passes between them.
        assert value.dtype is not None and _is_declared(value.shape), f"{value.name} has no declared shape"
    used = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    graph = ir.GraphView(
        inputs,
        outputs,
        nodes=nodes,
        initializers=[value for value in used if value.is_initializer()],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    ).clone()
    for copies, values in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for copy, value in zip(copies, values, strict=True):
            copy.name = names.get(value, value.name)
    return ir.Model(graph, ir_version=model.ir_version, functions=_used(model, graph))


def _is_declared(shape: ir.Shape | None) -> bool:
    """Whether every dimension is a number or has a name."""
    return shape is not None and all(isinstance(dim, int) or dim.value is not None for dim in shape)


def _used(model: ir.Model, graph: ir.Graph) -> Sequence[ir.Function]:
    return [model.functions[key] for key in {node.op_identifier(): None for node in graph} if key in model.functions]
