"""Cached causal attention that also says how much attention each visual token received: the idea of SGP as an op.

Full TensorRT takes it as one op. Elsewhere it is its two halves, `cached_attention` and, afterwards,
`received_attention`.
"""

from engine.plugins.visual_attention.contract import INPUTS, OUTPUTS, causal_score_mask, reference

__all__ = ["INPUTS", "OUTPUTS", "causal_score_mask", "reference"]
