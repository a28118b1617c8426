"""ChartQA, test: relaxed accuracy, numbers within 5 % and words exactly."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import WORD_OR_PHRASE, Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json

PARTS = ("human", "augmented")
TOLERANCE = 0.05


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    return [example for part in PARTS for example in _load_part(data, part)]


def _load_part(data: Path, part: str) -> list[Example]:
    path = data / "test" / f"test_{part}.json"

    def rows() -> Iterator[Example]:
        for number, row in enumerate(read_json(path)):
            yield Example(
                f"{part}-{number}",
                picture_file(data / "test" / "png" / row["imgname"]),
                f"{row['query']} {WORD_OR_PHRASE}",
                (row["label"],),
                kind=part,
            )

    return examples(path, rows())


def relaxed(prediction: str, example: Example) -> float:
    """1 or 0."""
    given, label = prediction.strip(), example.answers[0].strip()
    number, wanted = _number(given), _number(label)
    if number is not None and wanted:
        return float(abs(number - wanted) <= TOLERANCE * abs(wanted))
    return float(given.lower() == label.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


FILES = "test/test_human.json test/test_augmented.json test/png/"
CHARTQA = Benchmark("chartqa", "relaxed accuracy", FILES, load, relaxed, max_new_tokens=100)
