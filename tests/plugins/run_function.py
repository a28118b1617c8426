"""Runs one op of the domain `sgl` by itself in ONNX Runtime."""

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession, SessionOptions

from engine.bindings import Binding, Bindings
from engine.dims import Dim
from engine.graphs.declaration import IR_VERSION, declare, finish
from engine.plugins import cached_attention
from engine.plugins.function import DOMAIN, OPSET
from engine.plugins.lowering import Lowering


def run_function(function: ir.Function, inputs: dict[str, np.ndarray], threads: int = 1) -> list[np.ndarray]:
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
    return open_session(model, threads).run(None, inputs)


def attention_session(lowering: Lowering, heads: tuple[int, int, int], threads: int = 1) -> InferenceSession:
    """cached_attention of the contract's inputs, with the nodes that make its other ones."""
    assert lowering.shared_inputs is not None
    (num_heads, num_kv_heads, dim), (batch, sequence, cache) = heads, (Dim(name, 1, 1, 1 << 30) for name in "BST")
    rows, keys = (batch, sequence, num_kv_heads * dim), (batch, num_kv_heads, cache, dim)
    query, length = (batch, sequence, num_heads * dim), (batch,)
    types = (*["float32"] * 5, "int32", "int32")
    inputs = zip(cached_attention.INPUTS, types, (query, rows, rows, keys, keys, length, length), strict=True)
    outputs = zip(cached_attention.OUTPUTS, types, (query, keys, keys), strict=False)
    bound = Bindings(*(tuple(Binding(*declared) for declared in part) for part in (inputs, outputs)))
    builder, values = declare("one_op", bound, lowering.opset)
    shared = lowering.shared_inputs(builder.op, *(values[name] for name in ("query", "past_length")))
    results = builder.op.call(lowering.cached_attention(*heads), *values.values(), *shared)
    return open_session(finish(builder, bound, dict(zip(cached_attention.OUTPUTS, results, strict=True))), threads)


def open_session(model: ir.Model, threads: int) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = threads
    return InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
