"""How often a model is right, kind by kind."""

from collections.abc import Sequence

import numpy as np

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question as Request
from engine.runtime.scheduler import answered
from tools.miniature.checkpoint import Miniature
from tools.miniature.language_stage import answer
from tools.miniature.questions import LONGEST_ANSWER, Question, picture, score

Exam = Sequence[tuple[int, Question]]
"""Questions with the seeds of their scenes."""


def grade(exam: Exam, answers: Sequence[str]) -> dict[str, float]:
    """The share of right answers of each kind, and over `all` questions."""
    points: dict[str, list[float]] = {"all": []}
    for (_, question), given in zip(exam, answers, strict=True):
        point = score(question, given)
        points["all"].append(point)
        points.setdefault(question.kind, []).append(point)
    return {kind: float(np.mean(values)) for kind, values in points.items()}


def torch_answers(model: Miniature, exam: Exam) -> list[str]:
    """Greedy answers of a model in torch."""
    reader = model.reader
    said = [answer(model, question.text, reader.pixels(np.array(picture(seed))[None])) for seed, question in exam]
    return [reader.tokenizer.decode(ids) for ids in said]


def engine_answers(pipeline: SglPipeline, exam: Exam, large: bool) -> list[Answer]:
    """Greedy answers of one model of a built pair alone: the large unguided, or the small, which always exits."""
    exit = ExitConfig(enabled=False) if large else ExitConfig(exit_threshold=0.0)
    guidance, sampling = GuidanceConfig(enabled=False), SamplingConfig(LONGEST_ANSWER)
    asked = (Request((picture(seed),), question.text, guidance, exit, sampling) for seed, question in exam)
    return [answered(outcome) for outcome in pipeline.answer_all(asked)]


def in_words(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
