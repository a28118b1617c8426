"""SEED-Bench, the questions about pictures: accuracy over lettered options."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json
from engine.evaluation.multiple_choice import ask

QUESTIONS = "SEED-Bench.json"
LETTERS = "ABCD"


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        content = read_json(path)
        kinds = {number: name for name, number in content["question_type"].items()}
        for row in content["questions"]:
            if row["data_type"] == "image":
                yield Example(
                    str(row["question_id"]),
                    picture_file(data / "SEED-Bench-image" / row["data_id"]),
                    ask(row["question"], {letter: row[f"choice_{letter.lower()}"] for letter in LETTERS}),
                    (row["answer"],),
                    kind=kinds[row["question_type_id"]],
                )

    return examples(path, rows())


def right_letter(prediction: str, example: Example) -> float:
    """1 or 0, by the first character as in the official evaluation."""
    return float(prediction.strip()[:1] == example.answers[0])


SEED = Benchmark("seed", "accuracy", f"{QUESTIONS} SEED-Bench-image/", load, right_letter, max_new_tokens=10)
