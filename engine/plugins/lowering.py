"""What the ops of the domain `sgl` become on each target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from engine.bindings import Scoring
from engine.plugins.all_reduce import tensorrt as all_reduce_tensorrt
from engine.plugins.cached_attention import onnxruntime as cached_attention_onnxruntime
from engine.plugins.cached_attention import tensorrt_rtx as cached_attention_tensorrt
from engine.plugins.full_attention import onnxruntime as full_attention_onnxruntime
from engine.plugins.full_attention import tensorrt_rtx as full_attention_tensorrt
from engine.plugins.function import OPSET, TENSORRT_OPSET
from engine.plugins.prune_visual_tokens import onnxruntime as prune_visual_tokens_onnxruntime
from engine.plugins.prune_visual_tokens import tensorrt as prune_visual_tokens_plugin
from engine.plugins.prune_visual_tokens import tensorrt_rtx as prune_visual_tokens_tensorrt
from engine.plugins.received_attention import onnxruntime as received_attention_onnxruntime
from engine.plugins.received_attention import tensorrt_rtx as received_attention_tensorrt
from engine.plugins.visual_attention import tensorrt as visual_attention_plugin
from engine.target import Target


@dataclass(frozen=True)
class Lowering:
    """The bodies of all ops on a target, and the operator sets that graphs with them are written in.

    Attention with a cache is made of num_heads, num_kv_heads and head_dim, without one of num_heads.
    """

    opset: Mapping[str, int]
    cached_attention: Callable[[int, int, int], ir.Function]
    shared_inputs: Callable[[Any, ir.Value, ir.Value], Sequence[ir.Value]] | None
    """Nodes that make the inputs which cached_attention takes beside the contract's, of rows and past_length: the same
    for all layers with one KV length."""
    visual_attention: Callable[[int, int, int], ir.Function] | None
    """None where attention and scores are two engines."""
    received_attention: Callable[[int, int, int], ir.Function] | None
    """Of the second of them; None where there is one."""
    full_attention: Callable[[int], ir.Function]
    prune_visual_tokens: Callable[[], ir.Function]
    all_reduce: Callable[[int], ir.Function] | None
    """Made of the number of ranks; None where the graph is cut at it instead."""

    def scoring(self, scores: bool) -> Scoring:
        """How an engine that is to emit scores, or none, does so."""
        if not scores:
            return Scoring.OFF
        return Scoring.DEFERRED if self.visual_attention is None else Scoring.IN_ENGINE


ONNXRUNTIME = Lowering(
    OPSET,
    cached_attention_onnxruntime.cached_attention,
    cached_attention_onnxruntime.shared_inputs,
    None,
    received_attention_onnxruntime.received_attention,
    full_attention_onnxruntime.full_attention,
    prune_visual_tokens_onnxruntime.prune_visual_tokens,
    all_reduce=None,
)
TENSORRT = Lowering(
    TENSORRT_OPSET,
    cached_attention_tensorrt.cached_attention,
    None,
    None,
    received_attention_tensorrt.received_attention,
    full_attention_tensorrt.full_attention,
    prune_visual_tokens_tensorrt.prune_visual_tokens,
    all_reduce_tensorrt.all_reduce,
)
TENSORRT_PLUGINS = replace(
    TENSORRT,
    visual_attention=visual_attention_plugin.visual_attention,
    received_attention=None,
    prune_visual_tokens=prune_visual_tokens_plugin.prune_visual_tokens,
)
"""Of the full TensorRT, which takes plugins."""


LOWERINGS = {
    Target.ONNXRUNTIME: ONNXRUNTIME,
    Target.TENSORRT_RTX: TENSORRT,
    Target.TENSORRT: TENSORRT_PLUGINS,
}
