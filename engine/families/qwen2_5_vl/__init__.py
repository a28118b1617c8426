"""Qwen2.5-VL: Qwen2-VL with windows, RMS norms and a gated MLP in its vision encoder, and time by the second."""

from engine.families.qwen2_5_vl.config import ARCHITECTURE, end_ids, read_config
from engine.families.qwen2_vl.clips import clip_rows, cut_clip
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
