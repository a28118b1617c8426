"""LLaVA-OneVision as transformers saves it: `siglip` over a stretched tile and a canvas of tiles, and a Qwen2."""

from engine.families.llava_onevision.clips import clip_rows, cut_clip
from engine.families.llava_onevision.config import ARCHITECTURE, end_ids, read_config
from engine.families.llava_onevision.pictures import cut
from engine.families.llava_onevision.prompt import render_prompt
from engine.families.llava_onevision.sources import language_sources, vision_sources
from engine.video.choice import llava_onevision as choose_frames

__all__ = [
    "ARCHITECTURE",
    "choose_frames",
    "clip_rows",
    "cut",
    "cut_clip",
    "end_ids",
    "language_sources",
    "read_config",
    "render_prompt",
    "vision_sources",
]
