"""Attention in which every token sees every other: no mask, no cache."""

from engine.plugins.full_attention.contract import INPUTS, OUTPUTS, reference
from engine.plugins.full_attention.onnxruntime import full_attention

__all__ = ["INPUTS", "OUTPUTS", "full_attention", "reference"]
