"""Draw which visual tokens of a clip the large model kept: every frame that it was shown, with its share of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.cli.drawing import FAINT, GAP, INK, OUTLINE, PAPER, WIDTH, darken, fit

MOST_ACROSS = 8
CAPTION, BAR = 20, 4
"""Pixels below a frame: of its caption, and of the bar that is as long as the share that it keeps."""


@dataclass(frozen=True)
class Frame:
    """A frame, or the first of some that became tokens together. seconds: when each of them is seen. boxes: [V,4] of
    its tokens; kept: bool [V].
    """

    picture: Image.Image
    seconds: tuple[float, ...]
    boxes: np.ndarray
    kept: np.ndarray

    def caption(self) -> str:
        first, last = self.seconds[0], self.seconds[-1]
        when = f"{first:.1f} s" if first == last else f"{first:.1f}–{last:.1f} s"
        return f"{when}: {self.kept.sum()} of {len(self.kept)}, {self.kept.mean():.0%}"


def first_frames(indices: Sequence[int], groups: int) -> tuple[int, ...]:
    """Of each group of frames that became tokens together, the number of the first one in the clip."""
    return tuple(indices[:: _depth(indices, groups)])


def frames_of(
    pictures: Sequence[Image.Image], seconds: Sequence[float], times: np.ndarray, boxes: np.ndarray, kept: np.ndarray
) -> list[Frame]:
    """pictures: of `first_frames`; seconds: of all that were shown; times, boxes, kept: [V,2], [V,4], [V] of a clip."""
    group = np.unique(times, axis=0, return_inverse=True)[1].reshape(-1)
    depth = _depth(seconds, len(pictures))
    return [
        Frame(picture, tuple(seconds[index * depth :][:depth]), boxes[group == index], kept[group == index])
        for index, picture in enumerate(pictures)
    ]


def contact_sheet(frames: Sequence[Frame]) -> Image.Image:
    """The frames in their order, line by line, each above its caption."""
    across = min(MOST_ACROSS, max(2, math.ceil(math.sqrt(len(frames)))))
    lines = math.ceil(len(frames) / across)
    wide = (2 * WIDTH + GAP - GAP // 2 * (across - 1)) // across
    size = 10 if across > 5 else 12
    cells = [darken(fit(frame.picture, wide), frame.boxes, frame.kept) for frame in frames]
    high = max(cell.height for cell in cells) + CAPTION + BAR + GAP // 2
    sheet = Image.new("RGB", (across * (wide + GAP // 2) - GAP // 2, lines * high), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for number, (frame, cell) in enumerate(zip(frames, cells, strict=True)):
        left, top = number % across * (wide + GAP // 2), number // across * high
        sheet.paste(cell, (left, top))
        below = top + cell.height + 2
        pen.rectangle((left, below, left + wide - 1, below + BAR - 1), outline=FAINT)
        if share := round((wide - 1) * float(frame.kept.mean())):
            pen.rectangle((left, below, left + share, below + BAR - 1), fill=OUTLINE)
        pen.text((left, below + BAR + 1), frame.caption(), INK, font)
    return sheet


def _depth(shown: Sequence[object], groups: int) -> int:
    """Frames of a group; the last may have fewer."""
    return math.ceil(len(shown) / groups)
