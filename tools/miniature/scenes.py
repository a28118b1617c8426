"""Synthetic scenes: coloured objects, each with a number of its own, on shaded paper; the same for the same seed."""

from dataclasses import dataclass
from enum import Enum
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 224
"""Pixels along a scene; it becomes 2 x 2 tiles of 112."""
SLOTS = 8
"""Objects lie in the slots of a SLOTS x SLOTS lattice, one each: a slot is what one visual token shows."""
CELL = 14
"""Pixels along a cell of the coarse grid in which boxes are told."""
COLOURS = {
    "red": (200, 36, 40),
    "green": (36, 136, 56),
    "blue": (36, 70, 200),
    "yellow": (240, 205, 30),
    "purple": (128, 48, 160),
    "orange": (240, 130, 24),
    "cyan": (60, 200, 215),
    "brown": (110, 66, 32),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = range(20, 100)
RADII = range(11, 14)
DARK_TEXT = {"yellow", "orange", "cyan"}
GLYPH_SIZE = 15


class Split(Enum):
    """Seeds of scenes for each use; no scene is in two of them."""

    TRAINING = range(0, 1_000_000_000)
    VALIDATION = range(1_000_000_000, 1_001_000_000)
    TEST = range(1_001_000_000, 1_002_000_000)


@dataclass(frozen=True)
class Item:
    """One object of a scene; x and y are its centre in pixels."""

    colour: str
    shape: str
    number: int
    x: int
    y: int
    radius: int

    def box(self) -> tuple[int, int, int, int]:
        """First column, first row, last column, last row of the coarse grid, from 0."""
        left, top = (round((at - self.radius) / CELL) for at in (self.x, self.y))
        right, bottom = (round((at + self.radius) / CELL) - 1 for at in (self.x, self.y))
        return left, top, right, bottom


def make_scene(seed: int) -> tuple[Item, ...]:
    """What is in the scene of a seed: 6 to 10 objects in 4 colours, no two alike or with the same number."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 11))
    palette = rng.permutation(list(COLOURS))[:4]
    kinds = rng.permutation(len(palette) * len(SHAPES))[:count]
    return _place(rng, palette, kinds)


def make_crowd(seed: int) -> tuple[Item, ...]:
    """40 to 64 objects of any kind, the more to learn from one scene where nothing is asked about it."""
    rng = np.random.default_rng((seed, 2))
    kinds = rng.integers(len(COLOURS) * len(SHAPES), size=int(rng.integers(40, 65)))
    return _place(rng, np.array(list(COLOURS)), kinds)


def _place(rng: np.random.Generator, palette: np.ndarray, kinds: np.ndarray) -> tuple[Item, ...]:
    """Objects of the given kinds (colour of the palette, then shape) in slots and with numbers of their own."""
    numbers = rng.permutation(NUMBERS)[: len(kinds)]
    slots = rng.permutation(SLOTS * SLOTS)[: len(kinds)]
    items = []
    for kind, number, slot in zip(kinds, numbers, slots, strict=True):
        radius = int(rng.integers(RADII.start, RADII.stop))
        slack = SIDE / SLOTS / 2 - radius
        x, y = (
            round((place + 0.5) * SIDE / SLOTS + rng.uniform(-slack, slack)) for place in (slot % SLOTS, slot // SLOTS)
        )
        colour, shape = divmod(int(kind), len(SHAPES))
        items.append(Item(str(palette[colour]), SHAPES[shape], int(number), x, y, radius))
    return tuple(items)


def draw(seed: int, items: tuple[Item, ...]) -> np.ndarray:
    """uint8 [SIDE,SIDE,3]: the objects on paper that is darker to the bottom and warmer to the right, with noise."""
    rng = np.random.default_rng((seed, 1))
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    paper = np.full((SIDE, SIDE, 3), rng.uniform(180, 205), np.float32)
    paper -= 40 * ramp[:, None, None]
    paper += np.multiply.outer(ramp, np.array([25, 0, -25], np.float32))[None]
    for item in items:
        _blend(paper, item.x, item.y, _shape_mask(item.shape, item.radius), COLOURS[item.colour])
        low = item.radius // 3 if item.shape == "triangle" else 0
        ink = (16, 16, 16) if item.colour in DARK_TEXT else (250, 250, 250)
        _blend(paper, item.x, item.y + low, _number_mask(item.number), ink)
    paper += rng.uniform(2, 6) * rng.standard_normal(paper.shape, dtype=np.float32)
    return paper.clip(0, 255).astype(np.uint8)


def _blend(paper: np.ndarray, x: int, y: int, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Paint a colour through a [H,W] mask centred on x, y; what lies outside of the paper is cut off."""
    height, width = mask.shape
    top, left = y - height // 2, x - width // 2
    rows = slice(max(top, 0), min(top + height, SIDE))
    columns = slice(max(left, 0), min(left + width, SIDE))
    mask = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
    paper[rows, columns] += mask * (np.array(colour, np.float32) - paper[rows, columns])


@cache
def _shape_mask(shape: str, radius: int) -> np.ndarray:
    """float32 [2R+1,2R+1], 0..1, smooth at the edges."""
    scale, side = 4, 2 * radius + 1
    image = Image.new("L", (side * scale, side * scale))
    pen, end = ImageDraw.Draw(image), side * scale - 1
    match shape:
        case "circle":
            pen.ellipse((0, 0, end, end), 255)
        case "square":
            pen.rectangle((scale, scale, end - scale, end - scale), 255)
        case "triangle":
            pen.polygon([(end / 2, 0), (0, end), (end, end)], 255)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@cache
def _number_mask(number: int) -> np.ndarray:
    """float32 [17,23], 0..1."""
    image = Image.new("L", (23, 17))
    font = ImageFont.load_default(GLYPH_SIZE)
    ImageDraw.Draw(image).text((11.5, 8.5), str(number), 255, font, anchor="mm")
    return np.asarray(image, np.float32) / 255
