"""TextVQA, validation: soft accuracy over ten people's answers."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import WORD_OR_PHRASE, Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json
from engine.evaluation.vqa_accuracy import soft_accuracy

QUESTIONS = "TextVQA_0.5.1_val.json"


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for row in read_json(path)["data"]:
            yield Example(
                str(row["question_id"]),
                picture_file(data / "train_images" / f"{row['image_id']}.jpg"),
                f"{row['question']} {WORD_OR_PHRASE}",
                tuple(row["answers"]),
            )

    return examples(path, rows())


def grade(prediction: str, example: Example) -> float:
    return soft_accuracy(prediction, example.answers)


TEXTVQA = Benchmark("textvqa", "VQA soft accuracy", f"{QUESTIONS} train_images/", load, grade, max_new_tokens=10)
