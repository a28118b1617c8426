"""DocVQA, validation: average normalised Levenshtein similarity (ANLS)."""

from collections.abc import Iterator
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from engine.evaluation.benchmark import WORD_OR_PHRASE, Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, first_of, picture_file, read_json

QUESTIONS = ("val_v1.0_withQT.json", "val_v1.0.json")
THRESHOLD = 0.5
"""A less similar answer counts nothing."""


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = first_of(data, *QUESTIONS)

    def rows() -> Iterator[Example]:
        for row in read_json(path)["data"]:
            yield Example(
                str(row["questionId"]),
                picture_file(data / row["image"]),
                f"{row['question']} {WORD_OR_PHRASE}",
                tuple(row["answers"]),
            )

    return examples(path, rows())


def anls(prediction: str, example: Example) -> float:
    """Similarity to the closest answer, without case and with single spaces."""
    given = " ".join(prediction.lower().split())
    closest = max(
        Levenshtein.normalized_similarity(given, " ".join(answer.lower().split())) for answer in example.answers
    )
    return closest if closest >= THRESHOLD else 0.0


DOCVQA = Benchmark("docvqa", "ANLS", f"{' or '.join(QUESTIONS)} documents/", load, anls, max_new_tokens=100)
