"""Lowering of `sgl::visual_attention` for full TensorRT: our kernels as plugins, over caches that are updated in place.

Unlike its own attention, ours takes rows of different numbers in one call.
"""

from typing import Any

import onnx_ir as ir

from engine.plugins.function import DOMAIN, PLUGIN, PLUGIN_OPSET, sgl_function
from engine.plugins.tensorrt_caches import append
from engine.plugins.visual_attention.contract import INPUTS


def visual_attention(num_heads: int, num_kv_heads: int, head_dim: int) -> ir.Function:
    """The op with these head counts."""
    plugin = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, **PLUGIN, "_domain": DOMAIN}

    def body(op: Any, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        query, key, value, past_key, past_value, past, kv_length, score_row, score_weight, _, visual_column = inputs
        present_key, present_value = (
            append(op, cache, new, past, num_kv_heads, head_dim)
            for cache, new in ((past_key, key), (past_value, value))
        )
        attended = op.attend(query, present_key, present_value, past, kv_length, **plugin, _outputs=4)
        output, log_sum_exp = op.combine_splits(*attended, **plugin, _outputs=2)
        parts = op.receive(query, present_key, past, log_sum_exp, score_row, score_weight, visual_column, **plugin)
        return output, present_key, present_value, op.ReduceSum(parts, [1], keepdims=1)

    return sgl_function("visual_attention", body, INPUTS, PLUGIN_OPSET)
