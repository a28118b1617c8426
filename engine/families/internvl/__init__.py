"""InternVL as transformers saves it: the models of `internvl2` by other names, with its chat template."""

from engine.families.internvl.config import ARCHITECTURE, end_ids, read_config
from engine.families.internvl.sources import language_sources, vision_sources
from engine.families.internvl2.prompt import render_prompt
from engine.families.internvl2.tiling import split_tiles, token_boxes

__all__ = [
    "ARCHITECTURE",
    "end_ids",
    "language_sources",
    "read_config",
    "render_prompt",
    "split_tiles",
    "token_boxes",
    "vision_sources",
]
