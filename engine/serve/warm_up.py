"""A first question, so that the first client does not wait for what is done once."""

from PIL import Image

from engine.config import NEVER_EXITS, ExitConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline


def warm_up(pipeline: SglPipeline) -> None:
    """Through both models."""
    picture = Image.new("RGB", (64, 64))
    pipeline.answer(
        picture, "What is this?", exit=ExitConfig(exit_threshold=NEVER_EXITS), sampling=SamplingConfig(max_new_tokens=2)
    )
