"""Ops of target `tensorrt`: TensorRT's own operators, and our kernels as plugins where they do more."""

from engine.plugins.all_reduce import tensorrt as all_reduce
from engine.plugins.cached_attention import tensorrt as cached_attention
from engine.plugins.full_attention import tensorrt as full_attention
from engine.plugins.function import TENSORRT_OPSET
from engine.plugins.lowering import Lowering
from engine.plugins.prune_visual_tokens import tensorrt_with_plugin as prune_visual_tokens
from engine.plugins.visual_attention import tensorrt_with_plugin as visual_attention

TENSORRT = Lowering(
    module=__name__,
    opset=TENSORRT_OPSET,
    cached_attention=cached_attention.cached_attention,
    visual_attention=visual_attention.visual_attention,
    full_attention=full_attention.full_attention,
    prune_visual_tokens=prune_visual_tokens.prune_visual_tokens,
    all_reduce=all_reduce.all_reduce,
)
