"""Modules that graphs are declared with. Parameter names are the checkpoint's, as each family maps them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from engine.build.graph import data_type
from engine.model_config import Norm
from engine.parallel import Shard
from engine.plugins.all_reduce import NAME
from engine.plugins.function import DOMAIN


@dataclass(frozen=True)
class WeightPart:
    """Which part of a checkpoint tensor [rows, columns] a parameter is.

    Rows past the tensor's end are zero (a vocabulary padded to divide among ranks).
    """

    rows: range | None = None
    columns: range | None = None
    transpose: bool = False
    """Checkpoints keep matrices [out, in], MatMul wants [in, out]."""

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Of the parameter that this part of a tensor makes."""
        wanted = (self.rows, self.columns)[: len(stored)]
        kept = tuple(len(part) if part is not None else size for part, size in zip(wanted, stored, strict=False))
        shape = kept + stored[len(kept) :]
        return shape[::-1] if self.transpose else shape


class Weight(nn.Parameter):
    """A parameter that is filled from a checkpoint when the graph is written.

    stored: shape of the whole parameter as checkpoints keep it; the shape in the graph follows from it and `part`.
    """

    def __init__(self, stored: tuple[int, ...], part: WeightPart = WeightPart()) -> None:
        super().__init__(part.shape(stored))
        self.stored, self.part = stored, part

    def numpy_dtype(self) -> np.dtype:
        """What its numbers are stored as, unless they are quantized."""
        assert self.dtype is not None
        return self.dtype.numpy()


class Linear(nn.Module):
    """[..., in] -> [..., out]. `rows` and `columns` are this rank's parts of the outputs and of the inputs."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        rows: range | None = None,
        columns: range | None = None,
    ) -> None:
        super().__init__()
        self.weight = Weight((out_features, in_features), WeightPart(rows, columns, transpose=True))
        self.bias = Weight((out_features,), WeightPart(rows)) if bias else None

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        y = op.MatMul(x, self.weight)
        return y if self.bias is None else op.Add(y, self.bias)


class RMSNorm(nn.Module):
    """[..., C] -> [..., C]"""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = Weight((size,))
        self.eps = eps

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.RMSNormalization(x, self.weight, epsilon=self.eps)


class LayerNorm(nn.Module):
    """[..., C] -> [..., C]"""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = Weight((size,))
        self.bias = Weight((size,))
        self.eps = eps

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, epsilon=self.eps)


def norm(kind: Norm, size: int, eps: float) -> nn.Module:
    """The normalisation that a configuration names."""
    return RMSNorm(size, eps) if kind is Norm.RMS else LayerNorm(size, eps)


def shaped(value: ir.Value, shape: Iterable[int | ir.SymbolicDim], other: ir.Value) -> ir.Value:
    """`value` with a shape and the type of `other`: ONNX cannot infer shapes through ops of the domain `sgl`."""
    value.type, value.shape = other.type, ir.Shape([*shape])
    return value


def like(value: ir.Value, other: ir.Value) -> ir.Value:
    """`value` with the type and shape of `other`."""
    return shaped(value, dims(other), other)


def dims(value: ir.Value) -> ir.Shape:
    """The shape of a value that is known to have one."""
    assert value.shape is not None, f"{value.name} is declared with its shape"
    return value.shape


def set_dtype(module: nn.Module, dtype: str) -> None:
    """Give all parameters of a module this type, before it is called."""
    for parameter in module.parameters():
        parameter.type = ir.TensorType(data_type(dtype))


def cast(op: Any, x: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """x as `dtype`; itself if it is already."""
    assert dtype is not None, "types are known where they are declared"
    return x if x.dtype == dtype else op.Cast(x, to=dtype)


def all_reduce(op: Any, x: ir.Value, shard: Shard) -> ir.Value:
    """`sgl::all_reduce`, the sum of x over all ranks; nothing on one rank."""
    return x if shard.world_size == 1 else like(getattr(op, NAME)(x, _domain=DOMAIN), x)
