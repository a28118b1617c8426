"""Qwen2-VL as published and as transformers saves it: `qwen2_vit` over pictures of native size, a Qwen2 whose positions
are time, row and column."""

from engine.families.qwen2_vl.clips import clip_rows, cut_clip
from engine.families.qwen2_vl.config import ARCHITECTURE, end_ids, read_config
from engine.families.qwen2_vl.pictures import cut
from engine.families.qwen2_vl.prompt import render_prompt
from engine.families.qwen2_vl.sources import language_sources, vision_sources
from engine.video.choice import qwen2_vl as choose_frames

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
