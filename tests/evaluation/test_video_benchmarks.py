"""What is asked about videos, how answers are read, and what a judge gets."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.evaluation.benchmark import Mark, kind_of, mean_by_parts
from engine.evaluation.benchmarks import by_name
from engine.evaluation.multiple_choice import first_letter
from tests.evaluation import video_files


def test_videomme_is_asked_as_published(tmp_path: Path) -> None:
    video_files.videomme(tmp_path)
    first, second, third = by_name("videomme").load(tmp_path)
    assert first.question == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n"
        "When demonstrating the Germany modern Christmas tree is initially decorated, what is there?\n"
        "A. Apples.\nB. Candles.\nC. Berries.\nD. The three kinds are of the same number.\n"
        "The best answer is:"
    )
    assert (first.id, second.id, third.id) == ("001-1", "001-2", "601-1")
    assert first.kind == "short | Knowledge | Counting Problem"
    assert first.video == tmp_path / "data" / "fFjv93ACGo8.mp4"
    (tmp_path / "data").rename(tmp_path / "video")
    assert by_name("videomme").load(tmp_path)[2].video == tmp_path / "video" / "-tOhOmNXkVk.mp4"


def test_longvideobench_is_asked_as_published(tmp_path: Path) -> None:
    video_files.longvideobench(tmp_path)
    first, second = by_name("longvideobench").load(tmp_path)
    assert first.question == (
        "Question: In the video, which subtitles appear at the same time as the man with black hair?\n"
        "A. promisc has come to an end\nB. run away\nC. to the moon\nD. captain of the boat\nE. none\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert "E." not in second.question and first.answers == ("B",)
    assert (first.kind, second.kind) == ("600 s | TOS", "15 s | S2E")


def test_mmbench_video_leaves_what_its_judge_reads(tmp_path: Path) -> None:
    video_files.mmbench_video(tmp_path)
    benchmark = by_name("mmbench-video")
    (example,) = benchmark.load(tmp_path)
    assert example.question == "What is it?" and example.video == tmp_path / "video" / "0Z5wBr8lNOE.mp4"
    record = SimpleNamespace(**vars(example), prediction='A "car",\nred.')
    assert benchmark.submission is not None and benchmark.submission.suffix == ".tsv"
    (row,) = csv.DictReader(io.StringIO(benchmark.submission.write([record])), delimiter="\t")
    assert row == {
        "index": "1",
        "video": "0Z5wBr8lNOE",
        "question": "What is it?",
        "answer": 'A "red" car.',
        "dimensions": "['Object Recognition', 'OCR']",
        "prediction": 'A "car",\nred.',
    }


def test_mmvet_leaves_what_its_judge_reads() -> None:
    submission = by_name("mmvet").submission
    assert submission is not None and submission.suffix == ".json"
    records = [SimpleNamespace(id="v1_0", prediction="Ein Käfer"), SimpleNamespace(id="v1_1", prediction="")]
    assert json.loads(submission.write(records)) == {"v1_0": "Ein Käfer", "v1_1": ""}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("C", "C"),
        ("(C) Berries", "C"),
        ("The best answer is C.", "C"),
        ("The correct answer is: D", "D"),
        ("The answer is B, as Apples are", "B"),
        ("Best answer: C", "C"),
        ("Best option: D", "D"),
        ("The best option is A", "A"),
        ("The correct option is B", "B"),
        ("Berries", "B"),
        ("E", ""),
        ("none of them", ""),
        ("", ""),
    ],
)
def test_the_first_letter_is_the_answer(prediction: str, letter: str) -> None:
    """As the published evaluation reads it, words that begin with one included; its missing commas apart."""
    assert first_letter(prediction, "ABCD") == letter


def test_figures_are_means_over_each_part_of_a_kind() -> None:
    marks = [
        Mark(kind_of("short", "Knowledge", "OCR"), "", 1.0),
        Mark(kind_of("short", "Sports", "OCR"), "", 0.0),
        Mark(kind_of("long", "Sports", "Counting"), "", 0.0),
        Mark(kind_of("long", "Sports", "Counting"), "", 1.0),
    ]
    figures = mean_by_parts(marks)
    assert figures == {
        "short": 50,
        "long": 50,
        "Knowledge": 100,
        "Sports": pytest.approx(100 / 3),
        "OCR": 50,
        "Counting": 50,
        "all": 50,
    }
    assert list(figures) == ["short", "long", "Knowledge", "Sports", "OCR", "Counting", "all"]
