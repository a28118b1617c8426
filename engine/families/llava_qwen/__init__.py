"""LLaVA-OneVision as lmms-lab publishes it: the models of `llava_onevision` by other names, with the prompt of the code
that trained them."""

from engine.families.llava_onevision.clips import clip_rows, cut_clip
from engine.families.llava_onevision.pictures import cut
from engine.families.llava_onevision.prompt import render_prompt
from engine.families.llava_onevision.sources import language_sources, vision_sources
from engine.families.llava_qwen.config import ARCHITECTURE, end_ids, read_config
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
