"""Causal grouped-query attention over a KV cache that is updated in place."""

from engine.plugins.cached_attention.contract import INPUTS, OUTPUTS, reference
from engine.plugins.cached_attention.onnxruntime import cached_attention

__all__ = ["INPUTS", "OUTPUTS", "cached_attention", "reference"]
