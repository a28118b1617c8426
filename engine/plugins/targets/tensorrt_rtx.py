"""Ops of target `tensorrt_rtx`, which takes no plugins: TensorRT's own operators."""

from engine.plugins.all_reduce import tensorrt as all_reduce
from engine.plugins.cached_attention import tensorrt as cached_attention
from engine.plugins.full_attention import tensorrt as full_attention
from engine.plugins.function import TENSORRT_OPSET
from engine.plugins.lowering import Lowering
from engine.plugins.prune_visual_tokens import tensorrt as prune_visual_tokens
from engine.plugins.received_attention import tensorrt as received_attention

TENSORRT_RTX = Lowering(
    module=__name__,
    opset=TENSORRT_OPSET,
    cached_attention=cached_attention.cached_attention,
    received_attention=received_attention.received_attention,
    full_attention=full_attention.full_attention,
    prune_visual_tokens=prune_visual_tokens.prune_visual_tokens,
    all_reduce=all_reduce.all_reduce,
)
