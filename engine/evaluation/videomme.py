"""Video-MME, without subtitles: accuracy over lettered options; by duration, domain and task."""

from collections.abc import Iterator
from pathlib import Path

from engine.evaluation.benchmark import Benchmark, kind_of, mean_by_parts
from engine.evaluation.example import Example
from engine.evaluation.files import directory_of, examples, read_parquet
from engine.evaluation.multiple_choice import first_letter

QUESTIONS = Path("videomme", "test-00000-of-00001.parquet")
VIDEOS = ("data", "video", "videos")
"""What the videos' archives are unpacked to."""

LETTERS = "ABCD"
PROMPT = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
BEGINNING = "The best answer is:"
"""Of the answer, as the last line of the question."""


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for row in read_parquet(path):
            yield Example(
                row["question_id"],
                None,
                "\n".join((PROMPT, row["question"], *row["options"], BEGINNING)),
                (row["answer"],),
                kind=kind_of(row["duration"], row["domain"], row["task_type"]),
                group=row["videoID"],
                video=directory_of(data, *VIDEOS) / f"{row['videoID']}.mp4",
            )

    return examples(path, rows())


def right_letter(prediction: str, example: Example) -> float:
    """1 or 0."""
    return float(first_letter(prediction, LETTERS) == example.answers[0])


VIDEOMME = Benchmark("videomme", "accuracy", f"{QUESTIONS} data/", load, right_letter, 16, mean_by_parts)
