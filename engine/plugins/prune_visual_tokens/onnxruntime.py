"""Lowering of `sgl::prune_visual_tokens` for ONNX Runtime: row gathers."""

from typing import Any

import onnx_ir as ir

from engine.plugins.function import sgl_function
from engine.plugins.prune_visual_tokens.contract import INPUTS


def gather_rows(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    """The contract's inputs -> its outputs, as nodes."""
    *rows, keep_index = inputs
    index = op.Unsqueeze(keep_index, [-1])
    return tuple(op.GatherND(value, index, batch_dims=1) for value in rows)


def prune_visual_tokens() -> ir.Function:
    """The op."""
    return sgl_function("prune_visual_tokens", gather_rows, INPUTS)
