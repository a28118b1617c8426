"""Runs one function of the domain `sgl` by itself in ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import onnxruntime

from engine.build.graph import IR_VERSION
from engine.plugins.function import DOMAIN, OPSET


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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)
