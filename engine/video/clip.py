"""A clip as the families take it: the chosen frames."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from engine.errors import ImageError
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


def clip_of(pictures: Sequence[Image.Image], rate: float) -> Clip:
    """Of frames that are pictures already, so many for each second; all of them are chosen. Raises ImageError."""
    if not pictures:
        raise ImageError("a clip of no pictures has no frames; give at least one")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        first, other = (f"{width} x {height}" for width, height in sorted(sizes)[:2])
        raise ImageError(f"the frames of a clip are of several sizes ({first}, {other}); scale them to one")
    count = len(pictures)
    facts = ClipFacts(count, rate, count / rate, *pictures[0].size)
    return Clip(tuple(pictures), tuple(index / rate for index in range(count)), tuple(range(count)), facts)
