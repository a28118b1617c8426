"""GQA, balanced test-dev: exact match."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import WORD_OR_PHRASE, Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json

QUESTIONS = "testdev_balanced_questions.json"


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for number, row in read_json(path).items():
            yield Example(
                number,
                picture_file(data / "images" / f"{row['imageId']}.jpg"),
                f"{row['question']} {WORD_OR_PHRASE}",
                (row["answer"],),
            )

    return examples(path, rows())


def exact(prediction: str, example: Example) -> float:
    """1 or 0; case and a final period do not count."""
    return float(prediction.strip().rstrip(".").lower() == example.answers[0].lower())


GQA = Benchmark("gqa", "exact match", f"{QUESTIONS} images/", load, exact, max_new_tokens=10)
