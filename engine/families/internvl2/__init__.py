"""InternVL as published from InternVL2 on: an InternViT over 448-pixel tiles, pixel shuffle, `mlp1`, and a decoder."""

from engine.families.internvl2.config import ARCHITECTURE, end_ids, read_config
from engine.families.internvl2.prompt import render_prompt
from engine.families.internvl2.sources import language_sources, vision_sources
from engine.families.internvl2.tiling import clip_rows, cut, cut_clip
from engine.video.choice import internvl2 as choose_frames

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
