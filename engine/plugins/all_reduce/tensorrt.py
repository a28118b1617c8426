"""Lowering of `sgl::all_reduce` for both TensorRT targets: its own collective, which NCCL carries out.

Whoever runs the plan gives it the communicator (`IExecutionContext.set_communicator`).
"""

from typing import Any

import onnx_ir as ir

from engine.plugins.all_reduce.contract import INPUTS, NAME
from engine.plugins.function import TENSORRT_OPSET, sgl_function


def all_reduce(world_size: int) -> ir.Function:
    """The op among this many ranks."""

    def body(op: Any, partial: ir.Value) -> ir.Value:
        # root means nothing here, but the parser wants one.
        return op.DistCollective(
            partial, collective_operation="all_reduce", reduce_op="sum", root=-1, nb_rank=world_size
        )

    return sgl_function(NAME, body, INPUTS, TENSORRT_OPSET)
