"""What a target's lowering of the domain `sgl` is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from engine.bindings import Scoring


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """The bodies of all ops on a target, and the operator sets that graphs with them are written in.

    Attention with a cache is made of num_heads, num_kv_heads and head_dim, without one of num_heads.
    module: where it is declared; what an engine was lowered by is that module with all that it imports.
    """

    module: str
    opset: Mapping[str, int]
    cached_attention: Callable[[int, int, int], ir.Function]
    full_attention: Callable[[int], ir.Function]
    prune_visual_tokens: Callable[[], ir.Function]
    shared_inputs: Callable[[Any, ir.Value, ir.Value], Sequence[ir.Value]] | None = None
    """Nodes that make the inputs which cached_attention takes beside the contract's, of rows and past_length: the same
    for all layers with one KV length."""
    visual_attention: Callable[[int, int, int], ir.Function] | None = None
    """None where attention and scores are two engines."""
    received_attention: Callable[[int, int, int], ir.Function] | None = None
    """Of the second of them; None where there is one."""
    all_reduce: Callable[[int], ir.Function] | None = None
    """Made of the number of ranks; None where the graph is cut at it instead."""

    def scoring(self, scores: bool) -> Scoring:
        """How an engine that is to emit scores, or none, does so."""
        if not scores:
            return Scoring.OFF
        return Scoring.DEFERRED if self.visual_attention is None else Scoring.IN_ENGINE
