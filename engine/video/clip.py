"""A clip as the families take it: the chosen frames."""

from dataclasses import dataclass

from PIL import Image

from engine.video.facts import ClipFacts


@dataclass(frozen=True)
class Clip:
    """The chosen frames, in order, in mode RGB, upright.

    seconds: when each is shown, from the first of the clip. indices: which of the clip's frames each is.
    """

    pictures: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    indices: tuple[int, ...]
    facts: ClipFacts
