"""MM-Vet: answers for its judge, a model elsewhere that grades a submission file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.evaluation.benchmark import Answered, Benchmark, Submission
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


def submission(records: Sequence[Answered]) -> str:
    """What the judge reads: id -> answer."""
    return json.dumps({record.id: record.prediction for record in records}, indent=2, ensure_ascii=False)


MMVET = Benchmark(
    "mmvet", "scored by its judge", f"{QUESTIONS} images/", load, None, 512, submission=Submission(".json", submission)
)
