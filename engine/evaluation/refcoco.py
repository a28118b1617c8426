"""RefCOCO, RefCOCO+ and RefCOCOg: the box of what an expression refers to, right from an IoU of 0.5 on.

Read from the JSON lines published with Qwen-VL: the original release is pickled, which would run code of others.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json_lines

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
SIDE = 1000
"""Of a picture in the coordinates that a model answers in."""
ENOUGH_OVERLAP = 0.5
PARTS = {
    "refcoco": ("refcoco_val", "refcoco_testA", "refcoco_testB"),
    "refcoco+": ("refcoco+_val", "refcoco+_testA", "refcoco+_testB"),
    "refcocog": ("refcocog_val", "refcocog_test"),
}


def load(parts: tuple[str, ...], data: Path) -> list[Example]:
    """Raises RequestError."""
    return [example for part in parts for example in _load_part(data, part)]


def _load_part(data: Path, part: str) -> list[Example]:
    path = data / f"{part}.jsonl"

    def rows() -> Iterator[Example]:
        for number, row in enumerate(read_json_lines(path)):
            width, height = float(row["width"]), float(row["height"])
            left, top, right, bottom = (float(value) for value in row["bbox"])
            box = (left / width, top / height, right / width, bottom / height)
            yield Example(
                f"{part}-{number}",
                # The published paths begin with the folders of whoever wrote them.
                picture_file(data.joinpath(*Path(row["image"]).parts[-2:])),
                PROMPT.format(row["sent"]),
                ("[{:.6f}, {:.6f}, {:.6f}, {:.6f}]".format(*box),),
                kind=part,
            )

    return examples(path, rows())


def found(prediction: str, example: Example) -> float:
    """1 or 0."""
    box, wanted = read_box(prediction), read_box(example.answers[0])
    assert wanted is not None
    return float(box is not None and overlap(box, wanted) >= ENOUGH_OVERLAP)


def read_box(text: str) -> tuple[float, ...] | None:
    """Left, top, right, bottom of the first box in a text, in a picture whose sides are 1."""
    match = BOX.search(text)
    if match is None:
        return None
    values = tuple(map(float, match.groups()))
    # Models answer in thousandths; the published evaluation tells them from fractions by their sum.
    return tuple(value / SIDE for value in values) if sum(values) >= len(values) else values


def overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """Intersection over union."""
    sides = [min(one[axis + 2], two[axis + 2]) - max(one[axis], two[axis]) for axis in (0, 1)]
    common = max(sides[0], 0.0) * max(sides[1], 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return common / (sum(areas) - common) if common else 0.0


REFCOCO = tuple(
    Benchmark(
        name,
        "IoU of at least 0.5",
        f"{' '.join(f'{part}.jsonl' for part in parts)} train2014/",
        partial(load, parts),
        found,
        max_new_tokens=100,
    )
    for name, parts in PARTS.items()
)
