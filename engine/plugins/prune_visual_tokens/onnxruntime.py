"""Lowering of `sgl::prune_visual_tokens` for ONNX Runtime: row gathers."""

from typing import Any

import onnx_ir as ir

from engine.plugins.function import sgl_function
from engine.plugins.prune_visual_tokens.contract import INPUTS


def prune_visual_tokens() -> ir.Function:
    """The op."""

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        *rows, keep_index = inputs
        index = op.Unsqueeze(keep_index, [-1])
        return tuple(op.GatherND(value, index, batch_dims=1) for value in rows)

    return sgl_function("prune_visual_tokens", body, INPUTS)
