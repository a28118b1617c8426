"""Questions of one's own: exact match with any of their right answers."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from engine.evaluation.files import examples, picture_file, read_json_lines
from engine.evaluation.vqa_accuracy import normalise

QUESTIONS = "questions.jsonl"


def load(data: Path) -> list[Example]:
    """A line a question: `{"id": …, "image": FILE, "question": …, "answers": […], "kind": …}`; kind may be left out.
    Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for row in read_json_lines(path):
            answers = tuple(map(str, row["answers"]))
            yield Example(
                str(row["id"]), picture_file(data / row["image"]), row["question"], answers, str(row.get("kind", ""))
            )

    return examples(path, rows())


def grade(prediction: str, example: Example) -> float:
    """1 or 0, normalised as the VQA challenge does: case, articles and punctuation do not count."""
    return float(normalise(prediction) in map(normalise, example.answers))


OWN = Benchmark(
    "own",
    "exact match",
    f'{QUESTIONS}: a line {{"id", "image", "question", "answers", "kind"}} each',
    load,
    grade,
    max_new_tokens=16,
)
