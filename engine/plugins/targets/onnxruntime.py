"""Ops of target `onnxruntime`."""

from engine.plugins.cached_attention import onnxruntime as cached_attention
from engine.plugins.full_attention import onnxruntime as full_attention
from engine.plugins.function import OPSET
from engine.plugins.lowering import Lowering
from engine.plugins.prune_visual_tokens import onnxruntime as prune_visual_tokens
from engine.plugins.received_attention import onnxruntime as received_attention

ONNXRUNTIME = Lowering(
    module=__name__,
    opset=OPSET,
    cached_attention=cached_attention.cached_attention,
    shared_inputs=cached_attention.shared_inputs,
    received_attention=received_attention.received_attention,
    full_attention=full_attention.full_attention,
    prune_visual_tokens=prune_visual_tokens.prune_visual_tokens,
)
