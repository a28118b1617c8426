"""InternVL as transformers saves it: the models of `internvl2` by other names, with its chat template."""

from engine.families.internvl.config import ARCHITECTURE, end_ids, read_config
from engine.families.internvl.sources import language_sources, vision_sources
from engine.families.internvl2.prompt import render_prompt
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
