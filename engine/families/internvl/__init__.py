"""InternVL as transformers saves it: the models of `internvl2` by other names, with its chat template."""

from engine.families.internvl.config import ARCHITECTURE, end_ids, read_config
from engine.families.internvl.sources import language_sources, vision_sources
from engine.families.internvl2.prompt import render_prompt
from engine.families.internvl2.tiling import cut

__all__ = [
    "ARCHITECTURE",
    "cut",
    "end_ids",
    "language_sources",
    "read_config",
    "render_prompt",
    "vision_sources",
]
