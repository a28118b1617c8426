"""Causal grouped-query attention over a KV cache that is updated in place."""

from engine.plugins.cached_attention.contract import INPUTS, OUTPUTS, reference

__all__ = ["INPUTS", "OUTPUTS", "reference"]
