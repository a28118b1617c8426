"""MM-Vet: answers for its judge, a model elsewhere that grades a submission file."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json

QUESTIONS = "mm-vet.json"


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for number, row in read_json(path).items():
            yield Example(
                number,
                picture_file(data / "images" / row["imagename"]),
                row["question"],
                (row["answer"],),
                kind="+".join(sorted(row["capability"])),
            )

    return examples(path, rows())


def submission(predictions: dict[str, str]) -> dict[str, str]:
    """What the judge reads: id -> answer."""
    return predictions


MMVET = Benchmark(
    "mmvet", "scored by its judge", f"{QUESTIONS} images/", load, None, max_new_tokens=512, submission=submission
)
