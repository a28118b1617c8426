"""Ops of the domain `sgl` as ONNX functions: a node in the graph, a body per target beside it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import build_function

DOMAIN = "sgl"
CONTRIB = "com.microsoft"
"""ONNX Runtime's own domain."""
TENSORRT_DOMAIN = "trt"
"""Of operators that only TensorRT's parser knows."""
OPSET = {"": 23, CONTRIB: 1}
"""What function bodies and graphs are written in for ONNX Runtime."""
TENSORRT_OPSET = {"": 24, TENSORRT_DOMAIN: 1}
"""And for TensorRT."""
PLUGIN_OPSET = {**TENSORRT_OPSET, DOMAIN: 1}
"""And for TensorRT with plugins of our own."""
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""Attributes by which TensorRT's parser finds such a plugin; the op's name is the plugin's."""


def sgl_function(
    name: str, body: Callable[..., Any], inputs: Sequence[str], opset: Mapping[str, int] = OPSET
) -> ir.Function:
    """The function `sgl::<name>` whose body is traced from `body(op, *inputs)`."""
    return build_function(body, [ir.Value(name=i) for i in inputs], domain=DOMAIN, name=name, opset_imports=dict(opset))


def constant(op: Any, value: int | Sequence[int], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    """An integer constant of a definite type, for bodies whose inputs have none when they are traced."""
    return op.Constant(value=ir.tensor(value, dtype=dtype))


def uses_plugins(model: ir.Model) -> bool:
    """Whether a graph needs plugins of our own to be registered before TensorRT reads it."""
    return any("plugin_namespace" in node.attributes for function in model.functions.values() for node in function)
