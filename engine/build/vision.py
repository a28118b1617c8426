"""The vision graph of any configuration: that of its tower."""

import onnx_ir as ir

from engine.dims import Limits
from engine.model_config import InternVitConfig, QwenVitConfig, SiglipConfig, VisionConfig
from engine.plugins.lowering import Lowering
from engine.plugins.targets.onnxruntime import ONNXRUNTIME
from engine.towers.internvit.graph import vision_graph as internvit_graph
from engine.towers.qwen2_vit.graph import vision_graph as qwen2_vit_graph
from engine.towers.siglip.graph import vision_graph as siglip_graph


def vision_graph(
    config: VisionConfig, limits: Limits, lowering: Lowering = ONNXRUNTIME, dtype: str = "float32"
) -> ir.Model:
    """Declare the graph of a vision engine; its parameters carry no data yet.

    No rank owns a part of it: each holds the whole encoder and takes a share of the pieces.
    dtype: of parameters and activations.
    """
    match config:
        case InternVitConfig():
            return internvit_graph(config, limits, lowering, dtype)
        case QwenVitConfig():
            return qwen2_vit_graph(config, limits, lowering, dtype)
        case SiglipConfig():
            return siglip_graph(config, limits, lowering, dtype)
