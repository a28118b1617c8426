"""Qwen2.5-VL: Qwen2-VL with windows, RMS norms and a gated MLP in its vision encoder; still pictures."""

from engine.families.qwen2_5_vl.config import ARCHITECTURE, end_ids, read_config
from engine.families.qwen2_vl.pictures import cut
from engine.families.qwen2_vl.prompt import render_prompt
from engine.families.qwen2_vl.sources import language_sources, vision_sources

__all__ = [
    "ARCHITECTURE",
    "cut",
    "end_ids",
    "language_sources",
    "read_config",
    "render_prompt",
    "vision_sources",
]
