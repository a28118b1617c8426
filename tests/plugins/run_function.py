"""Runs one op of the domain `sgl` by itself in ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import onnxruntime

from engine.bindings import Binding, Bindings
from engine.build.graph import IR_VERSION, declare, finish
from engine.dims import Dim
from engine.plugins import cached_attention
from engine.plugins.function import DOMAIN, OPSET
from engine.plugins.lowering import Lowering


def run_function(function: ir.Function, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The function's outputs for inputs in the contract's order."""
    values = [
        ir.val(name, dtype=ir.DataType.from_numpy(array.dtype), shape=list(array.shape))
        for name, array in inputs.items()
    ]
    node = ir.node(function.name, values, domain=DOMAIN, num_outputs=len(function.outputs))
    for index, output in enumerate(node.outputs):
        output.name = f"output_{index}"
        output.dtype = ir.DataType.FLOAT
    graph = ir.Graph(values, node.outputs, nodes=[node], name="one_op", opset_imports={**OPSET, DOMAIN: 1})
    model = ir.Model(graph, ir_version=IR_VERSION, functions=[function])
    return open_session(model).run(None, inputs)


def run_attention(
    lowering: Lowering, heads: tuple[int, int, int], inputs: dict[str, np.ndarray], threads: int = 1
) -> list[np.ndarray]:
    """cached_attention's outputs for the contract's inputs, with the nodes that make its other ones."""
    assert lowering.shared_inputs is not None
    (batch, sequence, width), cache = inputs["query"].shape, inputs["past_key"].shape[2]
    # Dynamic, as an engine declares them: nothing about the call is known before it comes.
    b, s, t = (Dim(name, size, size, size) for name, size in (("B", batch), ("S", sequence), ("T", cache)))
    _, num_kv_heads, dim = heads
    rows, keys = (b, s, num_kv_heads * dim), (b, num_kv_heads, t, dim)
    shapes = dict(zip(inputs, ((b, s, width), rows, rows, keys, keys, (b,), (b,)), strict=True))
    bound = Bindings(
        tuple(Binding(name, inputs[name].dtype.name, shape) for name, shape in shapes.items()),
        tuple(
            Binding(name, "float32", shape)
            for name, shape in zip(cached_attention.OUTPUTS, ((b, s, width), keys, keys), strict=True)
        ),
    )
    builder, values = declare("one_op", bound, lowering.opset)
    shared = lowering.shared_inputs(builder.op, *(values[name] for name in ("query", "past_key", "past_length")))
    outputs = builder.op.call(lowering.cached_attention(*heads), *values.values(), *shared)
    model = finish(builder, bound, dict(zip(cached_attention.OUTPUTS, outputs, strict=True)))
    return open_session(model, threads).run(None, inputs)


def open_session(model: ir.Model, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
