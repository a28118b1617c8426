"""`sgl::prune_visual_tokens` as row gathers, which every target has."""

from typing import Any

import onnx_ir as ir


def gather_rows(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    """The contract's inputs -> its outputs, as nodes."""
    *rows, keep_index = inputs
    index = op.Unsqueeze(keep_index, [-1])
    return tuple(op.GatherND(value, index, batch_dims=1) for value in rows)
