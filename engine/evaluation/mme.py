"""MME: two yes-or-no questions a picture; accuracy and accuracy+ (both right) add up over the tasks."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import RequestError
from engine.evaluation.benchmark import TOTAL, WORD_OR_PHRASE, Benchmark, Mark, by_kind, mean
from engine.evaluation.example import Example
from engine.evaluation.files import examples, missing, picture_file

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PICTURES = (".jpg", ".png")
CHINESE = {"不是": "No", "是": "Yes", "否": "No"}


def load(data: Path) -> list[Example]:
    """Raises RequestError."""
    tasks = [task for task in (*PERCEPTION, *COGNITION) if (data / task).is_dir()]
    if not tasks:
        raise missing(data / PERCEPTION[0])
    return [example for task in tasks for example in _load_task(data / task)]


def _load_task(directory: Path) -> list[Example]:
    """Pictures beside their questions, or both in folders of their own: the release has both layouts."""
    split = (directory / "questions_answers_YN").is_dir()
    pictures = directory / "images" if split else directory
    texts = directory / "questions_answers_YN" if split else directory

    def rows() -> Iterator[Example]:
        for text in sorted(texts.glob("*.txt")):
            picture = next((path for end in PICTURES if (path := pictures / f"{text.stem}{end}").is_file()), None)
            if picture is None:
                raise missing(pictures / f"{text.stem}{PICTURES[0]}")
            lines = text.read_text(encoding="utf-8").strip().splitlines()
            if len(lines) != 2:
                raise RequestError(f"{text} has {len(lines)} questions instead of 2; download it again")
            for number, line in enumerate(lines):
                question, answer = line.split("\t")[-2:]
                identity = f"{directory.name}/{text.stem}"
                yield Example(
                    f"{identity}-{number}",
                    picture_file(picture),
                    f"{question} {WORD_OR_PHRASE}",
                    (answer.strip(),),
                    kind=directory.name,
                    group=identity,
                )

    return examples(texts, rows())


def yes_or_no(prediction: str, example: Example) -> float:
    """1 or 0, by the first four characters as in the official evaluation."""
    text = prediction.replace("\n", "")
    for chinese, english in CHINESE.items():
        text = text.replace(chinese, english)
    text = re.sub("[\u4e00-\u9fa5]", "", text.lower().replace("true", "yes").replace("false", "no"))[:4]
    said = next((word for word in ("yes", "no") if word in text), None)
    return float(said == example.answers[0].lower())


def task_scores(marks: Sequence[Mark]) -> dict[str, float]:
    """acc + acc+ of each task in percent, their sums over perception and cognition, and both together."""
    figures = {}
    for task, part in by_kind(marks).items():
        pictures: dict[str, list[float]] = defaultdict(list)
        for mark in part:
            pictures[mark.group].append(mark.grade)
        both = mean([min(grades) for grades in pictures.values()])
        figures[task] = 100 * (mean([mark.grade for mark in part]) + both)
    perception, cognition = (sum(figures.get(task, 0.0) for task in tasks) for tasks in (PERCEPTION, COGNITION))
    return figures | {"perception": perception, "cognition": cognition, TOTAL: perception + cognition}


MME = Benchmark(
    "mme", "acc + acc+", "a folder for each task", load, yes_or_no, max_new_tokens=20, summarise=task_scores
)
