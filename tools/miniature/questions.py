"""Questions about scenes that need different amounts of the picture, their answers, and scoring."""

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image

from tools.miniature.scenes import COLOURS, SHAPES, Item, Split, draw, make_scene
from tools.miniature.vocabulary import COLUMNS, COUNTS, ROWS

BOX = re.compile(r"([A-X])(\d{1,2}):([A-X])(\d{1,2})")
LONGEST_ANSWER = 8
"""Tokens; a box has five, and the end is one."""
ENOUGH_OVERLAP = 0.5
"""Intersection over union from which a box counts as found."""


class Kind(StrEnum):
    NUMBER = "number"
    """Read the number on one object, told by colour and shape, or by its colour if no other has it."""
    COLOUR = "colour"
    SHAPE = "shape"
    LOCATE = "locate"
    """Tell the box of one object: column letters and row numbers of its first and last cell, as in a spreadsheet."""
    COMPARE = "compare"
    """Which of two objects lies higher."""
    COUNT = "count"
    """How many objects share a colour or a shape."""


@dataclass(frozen=True)
class Question:
    kind: Kind
    text: str
    answer: str


def ask(kind: Kind, items: tuple[Item, ...], rng: np.random.Generator) -> Question:
    """A question of a kind about a scene."""
    item = items[rng.integers(len(items))]
    match kind:
        case Kind.NUMBER:
            lonely = [one for one in items if sum(other.colour == one.colour for other in items) == 1]
            if lonely and not rng.integers(3):
                item = lonely[rng.integers(len(lonely))]
                return Question(kind, f"Number on {item.colour}?", str(item.number))
            return Question(kind, f"Number on {item.colour} {item.shape}?", str(item.number))
        case Kind.COLOUR:
            return Question(kind, f"Colour of {item.number}?", item.colour)
        case Kind.SHAPE:
            return Question(kind, f"Shape of {item.number}?", item.shape)
        case Kind.LOCATE:
            return Question(kind, f"Where is {item.number}?", box_text(item.box()))
        case Kind.COMPARE:
            return _compare(items, rng)
        case Kind.COUNT:
            if rng.integers(2):
                word = SHAPES[rng.integers(len(SHAPES))]
                return Question(kind, f"How many {word}s?", COUNTS[sum(other.shape == word for other in items)])
            word = item.colour if rng.integers(4) else list(COLOURS)[rng.integers(len(COLOURS))]
            return Question(kind, f"How many {word}?", COUNTS[sum(other.colour == word for other in items)])


def _compare(items: tuple[Item, ...], rng: np.random.Generator) -> Question:
    """Of two objects in different rows; all objects of a scene may lie in one."""
    pairs = [(one, two) for one in items for two in items if one.row != two.row]
    if not pairs:
        return ask(Kind.NUMBER, items, rng)
    one, two = pairs[rng.integers(len(pairs))]
    higher = one if one.row < two.row else two
    return Question(Kind.COMPARE, f"Higher, {one.number} or {two.number}?", str(higher.number))


def score(question: Question, given: str) -> float:
    """1 for a right answer, else 0; a box is right if it overlaps enough."""
    if question.kind is not Kind.LOCATE:
        return float(given == question.answer)
    box, wanted = read_box(given), read_box(question.answer)
    assert wanted is not None
    return float(box is not None and overlap(box, wanted) >= ENOUGH_OVERLAP)


def box_text(box: tuple[int, int, int, int]) -> str:
    """First and last cell, such as `C4:E6`."""
    left, top, right, bottom = box
    return f"{COLUMNS[left]}{ROWS[top]}:{COLUMNS[right]}{ROWS[bottom]}"


def read_box(text: str) -> tuple[int, int, int, int] | None:
    """The inverse of `box_text`; None for what is no box."""
    match = BOX.fullmatch(text)
    if match is None:
        return None
    left, top, right, bottom = match.groups()
    return COLUMNS.index(left), int(top) - 1, COLUMNS.index(right), int(bottom) - 1


def overlap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes of whole cells, 0 for one that ends before it starts."""
    width, height = (min(one[axis + 2], two[axis + 2]) - max(one[axis], two[axis]) + 1 for axis in (0, 1))
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, two)]
    return common / (sum(areas) - common) if common and min(areas) > 0 else 0.0


def render(seed: int, kind: Kind) -> tuple[Image.Image, Question]:
    """A test picture and a question of a kind about it; the same for the same seed."""
    at = Split.TEST.value[seed]
    return picture(at), ask(kind, make_scene(at), np.random.default_rng((at, 3)))


def picture(seed: int) -> Image.Image:
    """The drawn scene of a seed."""
    return Image.fromarray(draw(seed, make_scene(seed)))


def exam(split: Split, count: int) -> list[tuple[int, Question]]:
    """The first `count` questions of a split with the seeds of their scenes: the kinds in turn, one for each scene."""
    kinds = list(Kind)
    seeds = split.value[:count]
    return [
        (seed, ask(kinds[number % len(kinds)], make_scene(seed), np.random.default_rng((seed, 3))))
        for number, seed in enumerate(seeds)
    ]
