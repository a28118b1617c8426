"""LLaVA-OneVision as transformers saves it: `siglip` over a stretched tile and a canvas of tiles, and a Qwen2."""

from engine.families.llava_onevision.config import ARCHITECTURE, end_ids, read_config
from engine.families.llava_onevision.pictures import cut
from engine.families.llava_onevision.prompt import render_prompt
from engine.families.llava_onevision.sources import language_sources, vision_sources

__all__ = [
    "ARCHITECTURE",
    "cut",
    "end_ids",
    "language_sources",
    "read_config",
    "render_prompt",
    "vision_sources",
]
