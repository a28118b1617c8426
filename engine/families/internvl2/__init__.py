"""InternVL2: an InternViT over 448-pixel tiles, pixel shuffle and `mlp1`, one of four language models."""

from engine.families.internvl2.config import read_config, recognises
from engine.families.internvl2.prompt import render_prompt
from engine.families.internvl2.sources import language_sources, vision_sources
from engine.families.internvl2.tiling import split_tiles, token_boxes

__all__ = [
    "language_sources",
    "read_config",
    "recognises",
    "render_prompt",
    "split_tiles",
    "token_boxes",
    "vision_sources",
]
