"""LongVideoBench, validation, without subtitles: accuracy over lettered options; by duration and kind of question."""

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from engine.evaluation.benchmark import LETTER, Benchmark, kind_of, mean_by_parts
from engine.evaluation.example import Example
from engine.evaluation.files import examples, read_json
from engine.evaluation.multiple_choice import first_letter

QUESTIONS = "lvb_val.json"
LETTERS = "ABCDE"


def load(data: Path) -> list[Example]:
    """The text is that of `longvideobench_dataset.py` of longvideobench/LongVideoBench. Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for row in read_json(path):
            options = [f"{letter}. {text}" for letter, text in zip(LETTERS, row["candidates"], strict=False)]
            yield Example(
                row["id"],
                None,
                "\n".join((f"Question: {row['question']}", *options, LETTER)),
                (ascii_uppercase[row["correct_choice"]],),
                kind=kind_of(f"{row['duration_group']} s", row["question_category"]),
                group=row["video_id"],
                video=data / "videos" / row["video_path"],
            )

    return examples(path, rows())


def right_letter(prediction: str, example: Example) -> float:
    """1 or 0."""
    return float(first_letter(prediction, LETTERS) == example.answers[0])


LONGVIDEOBENCH = Benchmark(
    "longvideobench", "accuracy", f"{QUESTIONS} videos/", load, right_letter, 16, summarise=mean_by_parts
)
