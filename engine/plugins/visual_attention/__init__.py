"""Cached causal attention that also says how much attention each visual token received: the idea of SGP as an op."""

from engine.plugins.visual_attention.contract import INPUTS, MASKED, OUTPUTS, causal_score_mask, reference
from engine.plugins.visual_attention.onnxruntime import visual_attention

__all__ = ["INPUTS", "MASKED", "OUTPUTS", "causal_score_mask", "reference", "visual_attention"]
