"""From bindings to an ONNX model: inputs first, outputs last, functions of the domain `sgl` in between."""

from collections.abc import Mapping

import ml_dtypes  # noqa: F401 (NumPy then knows bfloat16)
import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from engine.bindings import Binding, Bindings
from engine.plugins.function import DOMAIN, OPSET

IR_VERSION = 11


def declare(
    name: str, bindings: Bindings, opset: Mapping[str, int] = OPSET
) -> tuple[GraphBuilder, dict[str, ir.Value]]:
    """An empty graph with its inputs, and these by name."""
    graph = ir.Graph([], [], nodes=[], name=name, opset_imports={**opset, DOMAIN: 1})
    builder = GraphBuilder(graph)
    inputs = {
        binding.name: builder.input(binding.name, dtype=data_type(binding.dtype), shape=_shape(binding))
        for binding in bindings.inputs
    }
    return builder, inputs


def finish(builder: GraphBuilder, bindings: Bindings, outputs: dict[str, ir.Value]) -> ir.Model:
    """The model with its outputs in the order and of the types that the bindings declare."""
    for binding in bindings.outputs:
        value = outputs[binding.name]
        value.type, value.shape = ir.TensorType(data_type(binding.dtype)), _shape(binding)
        builder.add_output(value, binding.name)
    assert len(outputs) == len(bindings.outputs), "a graph yields exactly the outputs that its bindings declare"
    return ir.Model(builder.graph, ir_version=IR_VERSION, functions=list(builder.functions.values()))


def data_type(name: str) -> ir.DataType:
    """ONNX's of NumPy's name."""
    return ir.DataType.from_numpy(np.dtype(name))


def _shape(binding: Binding) -> ir.Shape:
    return ir.Shape([dim if isinstance(dim, int) else str(dim) for dim in binding.dims])
