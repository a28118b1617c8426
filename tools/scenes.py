"""Synthetic pictures: coloured shapes, each with a number of its own, drawn the same for the same seed."""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 56, 52),
    "green": (46, 150, 78),
    "blue": (46, 98, 200),
    "yellow": (240, 196, 40),
    "purple": (134, 70, 176),
    "orange": (240, 132, 36),
}
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Shape:
    """One object of a scene; x and y are its centre in pixels."""

    colour: str
    shape: str
    number: int
    x: int
    y: int
    radius: int


def make_scene(seed: int, width: int, height: int, objects: int) -> tuple[Image.Image, list[Shape]]:
    """A picture and what is in it; no two objects share colour and shape, or a number."""
    rng = random.Random(seed)
    columns = math.ceil(math.sqrt(objects * width / height))
    rows = math.ceil(objects / columns)
    cell = min(width // columns, height // rows)
    places = rng.sample([(column, row) for column in range(columns) for row in range(rows)], objects)
    kinds = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], objects)
    numbers = rng.sample(range(10, 100), objects)
    shapes = []
    for (column, row), (colour, shape), number in zip(places, kinds, numbers, strict=True):
        radius = round(cell * rng.uniform(0.26, 0.4))
        slack = cell // 2 - radius
        x = (2 * column + 1) * width // (2 * columns) + rng.randint(-slack, slack)
        y = (2 * row + 1) * height // (2 * rows) + rng.randint(-slack, slack)
        shapes.append(Shape(colour, shape, number, x, y, radius))
    return _draw(shapes, width, height, rng), shapes


def _draw(shapes: list[Shape], width: int, height: int, rng: random.Random) -> Image.Image:
    paper = rng.randint(222, 244)
    image = Image.new("RGB", (width, height), (paper, paper, paper - 8))
    pen = ImageDraw.Draw(image)
    for item in shapes:
        x, y, r, fill = item.x, item.y, item.radius, COLOURS[item.colour]
        match item.shape:
            case "circle":
                pen.ellipse((x - r, y - r, x + r, y + r), fill)
            case "square":
                side = round(r * 0.88)
                pen.rectangle((x - side, y - side, x + side, y + side), fill)
            case "triangle":
                pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill)
        low = r // 3 if item.shape == "triangle" else 0
        font = ImageFont.load_default(max(10, round(r * 0.7)))
        pen.text((x, y + low), str(item.number), (255, 255, 255), font, anchor="mm")
    return image
