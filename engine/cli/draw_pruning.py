"""Draw which visual tokens the large model kept: dropped ones darkened, with the importance beside them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.cli.contact_sheet import contact_sheet, first_frames, frames_of
from engine.cli.drawing import FAINT, GAP, INK, OUTLINE, PAPER, WIDTH, darken, fit, pixels
from engine.config import PictureConfig
from engine.errors import RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.clips import ClipSource, open_frames
from engine.runtime.images import ImageSource, open_image

HEAT = np.array([(12, 8, 38), (98, 20, 110), (196, 52, 84), (248, 142, 40), (252, 250, 164)], np.float32)
"""From the least importance to the most."""
DARKEST, BRIGHTEST = 2, 98
"""Percentiles of importance that are drawn as least and most: a few attention sinks would leave all else dark."""


def draw_answer(
    images: Sequence[ImageSource],
    answer: Answer,
    picture: PictureConfig = PictureConfig(),  # noqa: B008 (frozen)
    videos: Sequence[ClipSource] = (),
) -> Image.Image:
    """The pictures and clips of a question side by side, with what became of their visual tokens in the model that
    answered; of a clip all frames that it was shown.
    """
    tokens = np.arange(answer.visual_tokens)
    kept = np.isin(tokens, tokens if answer.kept is None else answer.kept)
    columns = []
    for index, source in enumerate(images):
        mine = answer.images == index
        importance = None if answer.importance is None else answer.importance[mine]
        columns.append(draw(open_image(source, picture), answer.boxes[mine], kept[mine], importance))
    for number, (clip, shown) in enumerate(zip(videos, answer.clips, strict=True), len(images)):
        mine, times = answer.images == number, answer.times
        assert times is not None, "a question with clips has times"
        first = first_frames(shown.indices, len(np.unique(times[mine], axis=0)))
        pictures = open_frames(clip, first, picture)
        columns.append(contact_sheet(frames_of(pictures, shown.seconds, times[mine], answer.boxes[mine], kept[mine])))
    return _page(_title(answer), columns, with_heat=bool(images) and answer.importance is not None)


def draw(image: Image.Image, boxes: np.ndarray, kept: np.ndarray, importance: np.ndarray | None) -> Image.Image:
    """One picture with its visual tokens.

    boxes: [V,4], x0 y0 x1 y1 of each token in the picture, whose sides are 1. kept: bool [V]. importance: [V] or None.
    Tokens that cover the picture once more (a thumbnail's) get a panel of their own below the finest.
    """
    picture = image.convert("RGB")
    cover = covers(boxes)
    number = int(cover.max(initial=0)) + 1
    finest = int(np.bincount(cover, minlength=number).argmax())
    panels = []
    for index in sorted(range(number), key=lambda index: index != finest):
        mine = cover == index
        width, name = (WIDTH, "tiles") if index == finest else ((WIDTH - GAP) // 2, "thumbnail")
        caption = f"{name}: {kept[mine].sum()} of {mine.sum()} tokens kept"
        panels.append((caption, darken(fit(picture, width), boxes[mine], kept[mine])))
    if importance is not None:
        panels.append(("importance", _heat(fit(picture, (WIDTH - GAP) // 2), boxes, importance)))
    return _arrange(panels)


def covers(boxes: np.ndarray) -> np.ndarray:
    """[V,4] -> int [V]: 0 for the tokens that cover the picture first, 1 for those that cover it again, and so on."""
    inside = np.clip(boxes, 0, 1).astype(np.float64)  # some tokens lie beside their picture
    area = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    return np.floor(np.cumsum(area) - area / 2).astype(int)


def _heat(picture: Image.Image, boxes: np.ndarray, importance: np.ndarray) -> Image.Image:
    """Importance per area, all covers together, over the picture in grey."""
    width, height = picture.size
    density = np.zeros((height, width), np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for (left, top, right, bottom), value in zip(pixels(boxes, picture.size), importance / areas, strict=True):
        density[top : bottom + 1, left : right + 1] += value
    least, most = np.percentile(density, (DARKEST, BRIGHTEST))
    level = np.clip((density - least) / max(most - least, np.finfo(np.float32).tiny), 0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(level, steps, HEAT[:, channel]) for channel in range(3)], axis=-1)
    heat = Image.fromarray(colours.astype(np.uint8))
    return Image.blend(picture.convert("L").convert("RGB"), heat, 0.8)


def _arrange(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """The first panel over the others, each above its caption."""
    first, rest = panels[0][1], [panel for _, panel in panels[1:]]
    caption = 22
    below = max((panel.height + caption + GAP // 2 for panel in rest), default=0)
    page = Image.new("RGB", (WIDTH, first.height + caption + below), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    left, top = 0, 0
    for index, (text, panel) in enumerate(panels):
        page.paste(panel, (left, top))
        pen.text((left, top + panel.height + 4), text, INK, font)
        if index == 0:
            top = panel.height + caption + GAP // 2
        else:
            left += (WIDTH + GAP) // 2
    return page


def _page(title: str, columns: list[Image.Image], with_heat: bool) -> Image.Image:
    head, foot = 48, 40
    inner = max((column.height for column in columns), default=0)
    width = GAP + sum(column.width + GAP for column in columns or [Image.new("RGB", (WIDTH, 0))])
    page = Image.new("RGB", (width, head + inner + foot), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, 14), title, INK, ImageFont.load_default(19))
    left = GAP
    for column in columns:
        page.paste(column, (left, head))
        left += column.width + GAP
    _legend(page, (GAP, head + inner + 12), with_heat)
    return page


def _legend(page: Image.Image, corner: tuple[int, int], with_heat: bool) -> None:
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    left, top = corner
    for text, fill, outline in (("kept", (120, 170, 220), OUTLINE), ("dropped", (48, 48, 48), None)):
        pen.rectangle((left, top, left + 15, top + 15), fill, outline, width=2)
        pen.text((left + 22, top), text, FAINT, font)
        left += 36 + round(font.getlength(text))
    if with_heat:
        steps = np.linspace(0, 1, len(HEAT))
        for offset in range(96):
            colour = tuple(round(float(np.interp(offset / 95, steps, HEAT[:, channel]))) for channel in range(3))
            pen.line((left + offset, top, left + offset, top + 15), colour)
        pen.text((left + 104, top), "importance, from least to most", FAINT, font)


def _title(answer: Answer) -> str:
    if answer.guidance is not None:
        kept = f"{answer.num_kept()} of {answer.visual_tokens} visual tokens kept"
        return f"{kept} from layer {answer.guidance.prune_layer} on"
    if answer.answered_by is AnsweredBy.SMALL:
        return f"early exit: the small model answered from all {answer.visual_tokens} visual tokens"
    return f"all {answer.visual_tokens} visual tokens kept"


def save(drawing: Image.Image, path: Path) -> None:
    """Raises RequestError."""
    try:
        drawing.save(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be written ({error}); choose another file, ending in .png") from None
