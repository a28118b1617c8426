"""What multiplies by an int8 or int4 matrix on ONNX Runtime: the nodes that take the place of a MatMul."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from engine.build.quantize import BLOCK, INT4_BLOCK, LEVELS, MatrixKernel
from engine.plugins.function import CONTRIB

MIDDLE = 128
"""What stands for zero among quantized activations, which are unsigned: no faster kernel takes signed ones."""


def _constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=f"quantized_rows.{name}", const_value=ir.tensor(array))


@dataclass(frozen=True)
class Constants:
    """What `quantize_rows` and `multiply_rows` read, once in a graph."""

    last_axis: ir.Value = field(default_factory=lambda: _constant("last_axis", np.array([-1], np.int64)))
    least: ir.Value = field(default_factory=lambda: _constant("least", np.array(np.finfo(np.float32).tiny)))
    """Stands in for the largest magnitude of a row of zeros."""
    step: ir.Value = field(default_factory=lambda: _constant("step", np.array(1 / LEVELS, np.float32)))
    middle: ir.Value = field(default_factory=lambda: _constant("middle", np.array(MIDDLE, np.uint8)))

    def values(self) -> Sequence[ir.Value]:
        return self.last_axis, self.least, self.step, self.middle


@dataclass(frozen=True)
class QuantizedRows:
    """Activations [...,K], every row divided by its largest magnitude: one fixed scale then serves all of them.

    nodes: compute numbers, uint8 [...,K], and magnitude, [...,1].
    """

    nodes: Sequence[ir.Node]
    numbers: ir.Value
    magnitude: ir.Value
    constants: Constants


def quantize_rows(x: ir.Value, constants: Constants) -> QuantizedRows:
    """[...,K] -> the same in 8 bits. The extremes cost less than the maximum of `Abs`, which is as large as x."""
    largest, smallest = (
        ir.node(reduce, [x, constants.last_axis], {"keepdims": 1}) for reduce in ("ReduceMax", "ReduceMin")
    )
    opposite = ir.node("Neg", smallest.outputs)
    magnitude = ir.node("Max", [*largest.outputs, *opposite.outputs, constants.least])
    divided = ir.node("Div", [x, *magnitude.outputs])
    numbers = ir.node("QuantizeLinear", [*divided.outputs, constants.step, constants.middle])
    nodes = [largest, smallest, opposite, magnitude, divided, numbers]
    return QuantizedRows(nodes, numbers.outputs[0], magnitude.outputs[0], constants)


def multiply_rows(rows: QuantizedRows, data: ir.Value, scale: ir.Value) -> Sequence[ir.Node]:
    """[...,K] times a matrix packed for PER_ROW [K,N] -> [...,N]

    A bias is added by another node: here it would come before the row's magnitude.
    """
    # No zero point of the weights: they are symmetric.
    inputs = [rows.numbers, data, rows.constants.step, scale, rows.constants.middle]
    product = ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB)
    return product, ir.node("Mul", [*product.outputs, rows.magnitude])


def multiply_blocks(
    kernel: MatrixKernel,
    x: ir.Value,
    data: ir.Value,
    scale: ir.Value,
    shape: Sequence[int],
    bias: ir.Value | None = None,
) -> ir.Node:
    """[...,K] times a matrix of `shape` [K,N] packed for PER_BLOCK or INT4, plus bias [N] -> [...,N]"""
    bits, block = (4, INT4_BLOCK) if kernel is MatrixKernel.INT4 else (8, BLOCK)
    # The level: activations are quantized to 8 bits, by the same blocks.
    attributes = {"K": shape[0], "N": shape[1], "bits": bits, "block_size": block, "accuracy_level": 4}
    # No zero point, which then is in the middle, and no index of groups.
    return ir.node("MatMulNBits", [x, data, scale, None, None, bias], attributes, domain=CONTRIB)
