"""Synthetic scenes: coloured objects, each with a number of its own, on shaded paper; the same for the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 112
"""Pixels along a tile of the encoder."""
TILES = 3
"""Along a scene."""
SIDE = TILES * TILE
SLOT = 28
"""Pixels along what one visual token shows; an object lies in a slot of its own."""
SLOTS = SIDE // SLOT
CELL = SLOT // 2
"""Pixels along a cell of the grid in which boxes are told."""
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
NUMBERS = range(30, 80)
RADII = (12, 13)
JITTER = 1
"""Most pixels between the middle of an object and that of its slot."""
DARK_TEXT = {"yellow", "orange", "cyan"}
GLYPH_SIZE = 15
NOISE = 1 << 21
"""Elements of the noise of which scenes take their parts."""


class Split(Enum):
    """Seeds of scenes for each use; no scene is in two of them."""

    TRAINING = range(0, 1_000_000_000)
    VALIDATION = range(1_000_000_000, 1_001_000_000)
    TEST = range(1_001_000_000, 1_002_000_000)


@dataclass(frozen=True)
class Item:
    """One object of a scene; column and row of its slot, and how many pixels it lies off the slot's middle."""

    colour: str
    shape: str
    number: int
    column: int
    row: int
    radius: int
    right: int
    down: int

    def box(self) -> tuple[int, int, int, int]:
        """First column, first row, last column, last row in cells, from 0."""
        return 2 * self.column, 2 * self.row, 2 * self.column + 1, 2 * self.row + 1


def make_scene(seed: int) -> tuple[Item, ...]:
    """What is in the scene of a seed: 6 to 10 objects in 4 colours, no two alike or with the same number."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 11))
    palette = rng.permutation(len(COLOURS))[:4]
    kinds = rng.permutation(len(palette) * len(SHAPES))[:count]
    return _place(rng, palette[kinds // len(SHAPES)], kinds % len(SHAPES), rng.permutation(len(NUMBERS))[:count])


def make_crowd(seed: int) -> tuple[Item, ...]:
    """Objects of any kind in most slots, the more to learn from one scene where nothing is asked about it."""
    rng = np.random.default_rng((seed, 2))
    count = int(rng.integers(SLOTS * SLOTS // 2, SLOTS * SLOTS))
    return _place(rng, *(rng.integers(len(values), size=count) for values in (COLOURS, SHAPES, NUMBERS)))


def _place(rng: np.random.Generator, colours: np.ndarray, shapes: np.ndarray, numbers: np.ndarray) -> tuple[Item, ...]:
    """Objects in slots of their own."""
    count, names = len(colours), list(COLOURS)
    slots = rng.permutation(SLOTS * SLOTS)[:count]
    radii = rng.choice(RADII, count)
    right, down = rng.integers(-JITTER, JITTER + 1, (2, count))
    columns = (slots % SLOTS, slots // SLOTS, radii, right, down)
    return tuple(
        Item(names[colour], SHAPES[shape], NUMBERS[number], *map(int, rest))
        for colour, shape, number, *rest in zip(colours, shapes, numbers, *columns, strict=True)
    )


def draw(seed: int, items: Sequence[Item]) -> np.ndarray:
    """uint8 [SIDE,SIDE,3]: the objects on paper whose tint tells where one is, with noise."""
    rng = np.random.default_rng((seed, 1))
    paper = _paper() + np.float32(rng.uniform(-12, 12))
    slots = paper.reshape(SLOTS, SLOT, SLOTS, SLOT, 3).swapaxes(1, 2)
    at = [item.row for item in items], [item.column for item in items]
    drawn = slots[at]
    inks = [(16, 16, 16) if item.colour in DARK_TEXT else (250, 250, 250) for item in items]
    shapes = [_shape_mask(item.shape, item.radius, item.right, item.down) for item in items]
    numbers = [_number_mask(item.number, item.right, item.down + 4 * (item.shape == "triangle")) for item in items]
    for masks, colours in ((shapes, [COLOURS[item.colour] for item in items]), (numbers, inks)):
        drawn += np.stack(masks)[..., None] * (np.array(colours, np.float32)[:, None, None] - drawn)
    slots[at] = drawn
    start = int(rng.integers(NOISE - paper.size))
    paper += np.float32(rng.uniform(2, 6)) * _noise()[start : start + paper.size].reshape(paper.shape)
    return paper.clip(0, 255).astype(np.uint8)


@cache
def _paper() -> np.ndarray:
    """float32 [SIDE,SIDE,3]: greener to the top, warmer to the right."""
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    tints = np.array([[15, -30, 15], [30, 0, -30]], np.float32)
    return 195 + ramp[:, None, None] * tints[0] + ramp[None, :, None] * tints[1]


@cache
def _noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(NOISE, np.float32)


@cache
def _shape_mask(shape: str, radius: int, right: int, down: int) -> np.ndarray:
    """float32 [SLOT,SLOT], 0..1, smooth at the edges."""
    scale = 4
    image = Image.new("L", (SLOT * scale, SLOT * scale))
    x, y, r = scale * (SLOT // 2 + right), scale * (SLOT // 2 + down), scale * radius
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r - 1, y + r - 1), 255)
        case "square":
            pen.rectangle((x - r + scale, y - r + scale, x + r - scale - 1, y + r - scale - 1), 255)
        case "triangle":
            pen.polygon([(x, y - r), (x - r, y + r - 1), (x + r - 1, y + r - 1)], 255)
    return np.asarray(image.resize((SLOT, SLOT), Image.Resampling.BOX), np.float32) / 255


@cache
def _number_mask(number: int, right: int, down: int) -> np.ndarray:
    """float32 [SLOT,SLOT], 0..1."""
    image = Image.new("L", (SLOT, SLOT))
    at = (SLOT / 2 + right, SLOT / 2 + down)
    ImageDraw.Draw(image).text(at, str(number), 255, ImageFont.load_default(GLYPH_SIZE), anchor="mm")
    return np.asarray(image, np.float32) / 255
