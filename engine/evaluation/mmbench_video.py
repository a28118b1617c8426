"""MMBench-Video: answers for its judge, a model elsewhere that grades each from 0 to 3."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.evaluation.benchmark import Answered, Benchmark, Submission
from engine.evaluation.example import Example
from engine.evaluation.files import examples, read_table

QUESTIONS = "MMBench-Video.tsv"
COLUMNS = ("index", "video", "question", "answer", "dimensions", "prediction")


def load(data: Path) -> list[Example]:
    """Models that take videos are asked the question alone, as in `build_prompt_nopack` of open-compass/VLMEvalKit,
    `vlmeval/dataset/mmbench_video.py`. Raises RequestError.
    """
    path = data / QUESTIONS

    def rows() -> Iterator[Example]:
        for row in read_table(path):
            yield Example(
                row["index"],
                None,
                row["question"],
                (row["answer"],),
                kind=row["dimensions"],
                group=row["video"],
                video=data / "video" / f"{row['video']}.mp4",
            )

    return examples(path, rows())


def submission(records: Sequence[Answered]) -> str:
    """The table that the judge's `MMBenchVideo.evaluate` reads."""
    file = io.StringIO()
    table = csv.writer(file, "excel-tab", lineterminator="\n")
    table.writerow(COLUMNS)
    for record in records:
        row = record.id, record.group, record.question, record.answers[0], record.kind, record.prediction
        table.writerow(row)
    return file.getvalue()


MMBENCH_VIDEO = Benchmark(
    "mmbench-video",
    "scored by its judge",
    f"{QUESTIONS} video/ (unpacked from video_pkl/)",
    load,
    None,
    max_new_tokens=512,
    submission=Submission(".tsv", submission),
)
