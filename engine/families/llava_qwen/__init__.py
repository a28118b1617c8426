"""LLaVA-OneVision as lmms-lab publishes it: the models of `llava_onevision` by other names, with the prompt of the code
that trained them."""

from engine.families.llava_onevision.pictures import cut
from engine.families.llava_onevision.prompt import render_prompt
from engine.families.llava_onevision.sources import language_sources, vision_sources
from engine.families.llava_qwen.config import ARCHITECTURE, end_ids, read_config

__all__ = [
    "ARCHITECTURE",
    "cut",
    "end_ids",
    "language_sources",
    "read_config",
    "render_prompt",
    "vision_sources",
]
