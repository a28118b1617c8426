"""Every loader on a small file in the published format."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import RequestError
from engine.evaluation.benchmark import Benchmark
from engine.evaluation.benchmarks import BENCHMARKS, by_name
from engine.evaluation.example import Example
from engine.runtime.images import open_image
from engine.video.reader import read_clip
from tests.evaluation import video_files
from tools.miniature.benchmark import MINIATURE

SIZE = (6, 4)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(path)


def textvqa(data: Path) -> None:
    answers = ["nokia"] * 6 + ["nokia phone"] * 4
    row = {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "what brand?", "answers": answers}
    write(data / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    draw(data / "train_images" / "003a8ae2ef43b901.jpg")


def docvqa(data: Path) -> None:
    row = {
        "questionId": 49153,
        "question": "What is the name?",
        "image": "documents/a_1.png",
        "answers": ["ITC", "itc"],
    }
    write(data / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [row]})
    draw(data / "documents" / "a_1.png")


def chartqa(data: Path) -> None:
    for part in ("human", "augmented"):
        row = {"imgname": "41699051005347.png", "query": "How many?", "label": "14"}
        write(data / "test" / f"test_{part}.json", [row])
    draw(data / "test" / "png" / "41699051005347.png")


def own(data: Path) -> None:
    row = {"id": 7, "image": "pictures/a.png", "question": "Is it red?", "answers": ["yes", "Yes, it is."], "kind": "x"}
    write(data / "questions.jsonl", json.dumps(row) + "\n")
    draw(data / "pictures" / "a.png")


def gqa(data: Path) -> None:
    row = {"imageId": "n161313", "question": "Is it red?", "answer": "yes", "isBalanced": True}
    write(data / "testdev_balanced_questions.json", {"201307251": row})
    draw(data / "images" / "n161313.jpg")


def refcoco(name: str, parts: tuple[str, ...]) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        row = {
            "image": "data/coco/train2014/COCO_train2014_000000581857.jpg",
            "sent": "man",
            "bbox": [60, 20, 120, 80],
            "width": 600,
            "height": 400,
        }
        for part in parts:
            write(data / f"{name}_{part}.jsonl", json.dumps(row) + "\n")
        draw(data / "train2014" / "COCO_train2014_000000581857.jpg")

    return make


def seed(data: Path) -> None:
    row = {
        "answer": "B",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many towels?",
        "question_id": "101669",
        "question_type_id": 5,
    }
    video = row | {"data_type": "video", "question_id": "v1", "question_type_id": 10}
    kinds = {"Instances Counting": 5, "Action Recognition": 10}
    write(data / "SEED-Bench.json", {"question_type": kinds, "questions": [row, video]})
    (data / "SEED-Bench-image").mkdir()
    Image.new("RGB", SIZE).save(data / "SEED-Bench-image" / "1454426_2591111986", format="jpeg")


def mmbench(data: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE).save(buffer, format="jpeg")
    picture = base64.b64encode(buffer.getvalue()).decode()
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    rows = [
        ["241", "What is it?", "Read, then answer.", "a dog", "a cat", "", "", "B", "recognition", picture],
        ["1000241", "What is it?", "Read, then answer.", "a cat", "a dog", "", "", "A", "recognition", picture],
    ]
    write(data / "mmbench_dev_20230712.tsv", "\n".join("\t".join(row) for row in [head, *rows]) + "\n")


def mmvet(data: Path) -> None:
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    write(data / "mm-vet.json", {"v1_0": row})
    draw(data / "images" / "v1_0.png")


def mme(data: Path) -> None:
    questions = "Is it a cat?\tYes\nIs it a dog?\tNo\n"
    write(data / "count" / "0001.txt", questions)
    draw(data / "count" / "0001.jpg")
    write(data / "landmark" / "questions_answers_YN" / "01.txt", questions)
    draw(data / "landmark" / "images" / "01.jpg")


PUBLISHED: dict[str, tuple[Callable[[Path], None], int, str, str]] = {
    "own": (own, 1, "Yes.", "no"),
    "textvqa": (textvqa, 1, "Nokia", "samsung"),
    "docvqa": (docvqa, 1, "ITC", "tobacco"),
    "chartqa": (chartqa, 2, "14.2", "16"),
    "gqa": (gqa, 1, "Yes", "no"),
    "refcoco": (refcoco("refcoco", ("val", "testA", "testB")), 3, "[[100, 50, 200, 200]]", "[[0, 0, 90, 50]]"),
    "refcoco+": (refcoco("refcoco+", ("val", "testA", "testB")), 3, "[[100, 50, 200, 200]]", "[[0, 0, 90, 50]]"),
    "refcocog": (refcoco("refcocog", ("val", "test")), 2, "[[100, 50, 200, 200]]", "[[0, 0, 90, 50]]"),
    "seed": (seed, 1, "B. Two", "A"),
    "mmbench": (mmbench, 2, "a cat", "a dog"),
    "mme": (mme, 4, "", ""),
    "mmvet": (mmvet, 1, "", ""),
    "videomme": (video_files.videomme, 3, "The best answer is C.", "A"),
    "longvideobench": (video_files.longvideobench, 2, "B. run away", "The answer is none of these: E"),
    "mmbench-video": (video_files.mmbench_video, 1, "", ""),
}
"""Maker of the files, number of questions, a right and a wrong answer."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read(tmp_path: Path, name: str) -> None:
    make, count, right, wrong = PUBLISHED[name]
    make(tmp_path)
    benchmark: Benchmark = by_name(name)
    examples = benchmark.load(tmp_path)
    assert len(examples) == len({example.id for example in examples}) == count
    for example in examples:
        if example.picture is not None:
            assert open_image(example.picture()).size == SIZE
        else:
            assert example.video is not None
            assert len(read_clip(example.video, lambda facts: range(facts.frames)).pictures) == 5
        assert example.question
        if benchmark.grade is not None and right:
            assert benchmark.grade(right, example) >= 0.9
            assert benchmark.grade(wrong, example) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_and_broken_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="is missing; give the directory"):
        by_name(name).load(tmp_path)
    PUBLISHED[name][0](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".tsv", ".txt", ".parquet")]
    for path in files:
        path.write_text('{"data": [{"unknown": 1}]}', encoding="utf-8")
    with pytest.raises(RequestError, match="download it again"):
        by_name(name).load(tmp_path)


def test_every_benchmark_is_tested() -> None:
    assert BENCHMARKS.keys() == PUBLISHED.keys()


def test_chosen_options_are_shown_as_published(tmp_path: Path) -> None:
    mmbench(tmp_path)
    question = by_name("mmbench").load(tmp_path)[0].question
    assert question.splitlines()[:4] == ["Read, then answer.", "What is it?", "A. a dog", "B. a cat"]
    assert "C." not in question


def test_mme_questions_go_in_pairs(tmp_path: Path) -> None:
    mme(tmp_path)
    examples = by_name("mme").load(tmp_path)
    assert [(example.kind, example.answers) for example in examples] == [
        ("count", ("Yes",)),
        ("count", ("No",)),
        ("landmark", ("Yes",)),
        ("landmark", ("No",)),
    ]
    assert [example.group for example in examples] == ["count/0001"] * 2 + ["landmark/01"] * 2


def test_the_miniature_knows_its_own_answers() -> None:
    examples: list[Example] = MINIATURE.load(Path())[:12]
    assert MINIATURE.grade is not None
    assert [MINIATURE.grade(example.answers[0], example) for example in examples] == [1.0] * 12
    assert [MINIATURE.grade("?", example) for example in examples] == [0.0] * 12
    assert open_image(*examples[0].pictures()).size == (336, 336)
