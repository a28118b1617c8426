"""TensorRT's Python bindings over a stub library, in a process of their own: what plugins say without TensorRT."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


@dataclass(frozen=True)
class Tensor:
    """shape and TensorRT's name of a type"""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Launch:
    """What TensorRT would start, with its symbols evaluated. aliased: the input that each output shares memory with.

    types: of inputs and outputs, of each combination that may be chosen; tactics: of these.
    """

    outputs: list[Tensor]
    aliased: list[int | None]
    name: str
    ptx: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    scalars: list[int]
    types: list[list[str]]
    tactics: list[int]


def missing() -> str | None:
    """Why plugins cannot be described here."""
    if find_spec("tensorrt_bindings") is None:
        return "TensorRT's Python bindings (tensorrt-cu13-bindings) are not installed"
    return None if shutil.which("cc") else "no C compiler to make the stub library"


def stub_process(directory: Path) -> ProcessPoolExecutor:
    """Where `launch` can run."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_import_over_stubs, initargs=(directory,))


def _import_over_stubs(directory: Path) -> None:
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS)
    for library in LIBRARIES:
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-x", "c", "-", "-o", directory / library]
        subprocess.run(command, input=source, text=True, check=True)
        ctypes.CDLL(str(directory / library), ctypes.RTLD_GLOBAL)
    sys.modules["tensorrt"] = import_module("tensorrt_bindings")
    sys.modules["tensorrt"].IDimensionExpr = Number


@dataclass(frozen=True)
class Number:
    """Stands for an expression of dimensions."""

    value: int

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class Numbers:
    """Stands for the builder of such expressions: every dimension is known."""

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, operation: Any, a: Number, b: Number) -> Number:
        return Number(int(OPERATIONS[operation.name](a.value, b.value)))


OPERATIONS = {
    "SUM": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "PROD": lambda a, b: a * b,
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
    "EQUAL": lambda a, b: a == b,
}


def launch(
    plugin: str, capability: int, inputs: Sequence[Tensor], attributes: dict[str, int], tactic: int = 0
) -> Launch:
    """Describe plugin `sgl::<plugin>` to the bindings, and have it answer for these inputs."""
    import tensorrt as trt
    from tensorrt.plugin import _lib, _tensor

    from engine.plugins.tensorrt_plugins import register_plugins

    if not _lib.QDP_REGISTRY:
        register_plugins(capability, lazy_register=True)
    definition = _lib.QDP_REGISTRY[f"sgl::{plugin}"]
    types = [getattr(trt.DataType, tensor.dtype) for tensor in inputs]

    def describe(shapes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        described = [_tensor.TensorDesc(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
        outputs = definition.register_func(*described, **attributes)
        return described, list(outputs) if isinstance(outputs, tuple) else [outputs]

    # TensorRT asks for the types of the outputs before it knows any shape.
    _tensor.SymIntExpr._exprBuilder = None
    _, shapeless = describe([_tensor.ShapeExprs(len(tensor.shape), _is_dummy=True) for tensor in inputs])
    _tensor.SymIntExpr._exprBuilder = Numbers()
    described, outputs = describe(
        [_tensor.ShapeExprs.from_tuple(tuple(map(_tensor.ShapeExpr, tensor.shape))) for tensor in inputs]
    )
    assert [x.dtype for x in shapeless] == [x.dtype for x in outputs]
    combinations = []
    if definition.autotune_func:
        combinations = definition.autotune_func(*described, outputs=outputs)
    entry, ptx, parameters, scalars = definition.aot_impl_func(*described, **attributes, outputs=outputs, tactic=tactic)
    numbers = {key: expression._expr.value for key, expression in vars(parameters).items()}
    return Launch(
        [Tensor(tuple(size._expr.value for size in x.shape_expr), x.dtype.name) for x in outputs],
        [next((i for i, y in enumerate(described) if y is x.get_aliased()), None) for x in outputs],
        entry,
        ptx,
        (numbers["grid_x"], numbers["grid_y"], numbers["grid_z"]),
        (numbers["block_x"], numbers["block_y"], numbers["block_z"]),
        numbers["shared_mem"],
        [scalar._expr.value for scalar in scalars],
        [[x.name for x in chosen.types] for combination in combinations for chosen in combination._get_combinations()],
        [tactic for combination in combinations for tactic in combination._tactics],
    )
