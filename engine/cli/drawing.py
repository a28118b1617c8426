"""What drawings of visual tokens have in common: their size and colours, and a picture with its dropped tokens dark."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

WIDTH, MAX_HEIGHT, GAP = 512, 640, 16
PAPER, INK, FAINT, OUTLINE = (250, 250, 248), (32, 34, 38), (118, 122, 130), (255, 214, 64)


def darken(picture: Image.Image, boxes: np.ndarray, kept: np.ndarray) -> Image.Image:
    """The picture with what the dropped tokens cover in dark grey, and an outline around the rest."""
    mask = Image.new("L", picture.size)
    pen = ImageDraw.Draw(mask)
    for box in pixels(boxes[kept], picture.size):
        pen.rectangle(box, fill=255)
    dropped = ImageEnhance.Brightness(picture.convert("L").convert("RGB")).enhance(0.4)
    drawn = Image.composite(picture, dropped, mask)
    if not kept.all():
        edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
        drawn.paste(OUTLINE, mask=edge)
    return drawn


def pixels(boxes: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """[V,4] -> left, top, right and bottom pixel of each, the last two included; neighbours do not overlap."""
    corners = np.rint(boxes.astype(np.float64) * np.tile(size, 2)).astype(int)
    corners[:, 2:] = np.maximum(corners[:, 2:] - 1, corners[:, :2])
    return [(left, top, right, bottom) for left, top, right, bottom in corners.tolist()]


def fit(picture: Image.Image, width: int) -> Image.Image:
    """As wide as this, unless it would be too high."""
    scale = min(width / picture.width, MAX_HEIGHT * width / WIDTH / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
