"""miniature-vqa: questions about synthetic scenes of the kind that the miniature pair was trained on."""

from functools import partial
from pathlib import Path

from engine.evaluation.benchmark import Benchmark
from engine.evaluation.example import Example
from tools.miniature import questions
from tools.miniature.questions import exam, picture
from tools.miniature.scenes import Split

QUESTIONS = 1000


def load(data: Path) -> list[Example]:
    """Drawn from fixed seeds; `data` is not read."""
    return [
        Example(str(seed), partial(picture, seed), question.text, (question.answer,), kind=question.kind)
        for seed, question in exam(Split.TEST, QUESTIONS)
    ]


def grade(prediction: str, example: Example) -> float:
    """Exact match; a box by its overlap."""
    question = questions.Question(questions.Kind(example.kind), example.question, example.answers[0])
    return questions.score(question, prediction)


MINIATURE = Benchmark(
    "miniature-vqa", "exact match, IoU of boxes", "nothing: scenes are drawn", load, grade, max_new_tokens=8
)
