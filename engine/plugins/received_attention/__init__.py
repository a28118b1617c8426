"""How much attention visual tokens received from rows whose attention was computed before: scores, taken afterwards."""

from engine.plugins.received_attention.contract import INPUTS, MASKED, OUTPUTS, causal_score_mask, reference
from engine.plugins.received_attention.onnxruntime import received_attention

__all__ = ["INPUTS", "MASKED", "OUTPUTS", "causal_score_mask", "received_attention", "reference"]
