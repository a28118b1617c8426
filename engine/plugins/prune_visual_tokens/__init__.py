"""Drop tokens before a layer; the survivors keep their rotary angles, hence their original positions."""

from engine.plugins.prune_visual_tokens.contract import INPUTS, OUTPUTS, reference
from engine.plugins.prune_visual_tokens.onnxruntime import prune_visual_tokens

__all__ = ["INPUTS", "OUTPUTS", "prune_visual_tokens", "reference"]
