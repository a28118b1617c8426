"""Vision encoders that are measured: widths of published ones, a few layers of each, all alike."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tower:
    """A vision encoder, and a square picture or tile for it.

    name: published sizes that are as wide. model_type: transformers' name of the model. output_size: width of the
    language model behind it. side, patch: pixels along the picture and along one of its patches.
    """

    name: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    heads: int
    output_size: int
    side: int
    patch: int = 14
    layers: int = 4

    def patches(self) -> int:
        return (self.side // self.patch) ** 2

    def vision_config(self) -> Mapping[str, Any]:
        """In transformers' terms."""
        width = {"hidden_size": self.hidden_size, "patch_size": self.patch}
        inner = {"intermediate_size": self.intermediate_size}
        depth = {"num_hidden_layers": self.layers, "num_attention_heads": self.heads}
        qwen = {"depth": self.layers, "num_heads": self.heads, "patch_size": self.patch}
        match self.model_type:
            case "internvl":
                sides = {"image_size": [self.side] * 2, "patch_size": [self.patch] * 2}
                return width | inner | depth | sides | {"attention_bias": True}
            case "qwen2_vl":
                ratio = {"mlp_ratio": self.intermediate_size // self.hidden_size}
                return qwen | ratio | {"embed_dim": self.hidden_size, "hidden_size": self.output_size}
            case "qwen2_5_vl":
                windows = {"fullatt_block_indexes": [self.layers - 1], "window_size": 8 * self.patch}
                return qwen | width | inner | windows | {"out_hidden_size": self.output_size}
            case "llava_onevision":
                kind = {"model_type": "siglip_vision_model", "vision_use_head": False}
                return width | inner | depth | kind | {"image_size": self.side}
        raise AssertionError(f"no vision encoder of {self.model_type} is known here")


TOWERS = (
    Tower("InternViT (InternVL2-1B to 8B)", "internvl", 1024, 4096, 16, output_size=896, side=448),
    Tower("Qwen2-VL's", "qwen2_vl", 1280, 5120, 16, output_size=1536, side=448),
    Tower("Qwen2.5-VL's, with windows", "qwen2_5_vl", 1280, 3420, 16, output_size=2048, side=448),
    Tower("SigLIP (LLaVA-OneVision)", "llava_onevision", 1152, 4304, 16, output_size=896, side=384),
)
TINY_TOWERS = tuple(
    replace(tower, hidden_size=32, intermediate_size=64, heads=2, output_size=64, side=56, layers=2) for tower in TOWERS
)
