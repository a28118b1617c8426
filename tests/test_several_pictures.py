"""Questions about two pictures, through the committed miniature pair: which rows are fair to both."""

import numpy as np
import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig, ScoreRows
from engine.runtime.answer import Answer
from engine.runtime.pipeline import Question, SglPipeline
from tools.demo import PAIR
from tools.miniature.questions import LONGEST_ANSWER, picture
from tools.miniature.scenes import Split, make_scene

QUESTIONS = 32
"""Half of them about the first picture."""
NEVER = ExitConfig(enabled=False)
pytestmark = pytest.mark.xdist_group("accuracy")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    directory = tmp_path_factory.mktemp("engines") / "pair"
    build_pair(BuildConfig(PAIR / "small", PAIR / "large", directory, max_tokens=512, max_batch=8))
    return SglPipeline.load(directory, threads=1)


def ask(pipeline: SglPipeline, rows: ScoreRows) -> tuple[list[Answer], list[str]]:
    """The colour of an object whose number is in one picture only, and the right answers."""
    guidance = GuidanceConfig(score_rows=rows, retention_ratio=0.05, prune_layer=1)
    questions, expected = [], []
    for number in range(QUESTIONS):
        seeds = Split.TEST.value[2 * number : 2 * number + 2]
        scenes = [make_scene(seed) for seed in seeds]
        others = {item.number for item in scenes[1 - number % 2]}
        item = next(item for item in scenes[number % 2] if item.number not in others)
        pictures = tuple(picture(seed) for seed in seeds)
        sampling = SamplingConfig(max_new_tokens=LONGEST_ANSWER)
        questions.append(Question(pictures, f"Colour of {item.number}?", guidance, NEVER, sampling))
        expected.append(item.colour)
    return pipeline.answer_batch(questions), expected


def share_of_first(answers: list[Answer]) -> float:
    """Of the kept tokens, in the mean over questions; both pictures have as many visual tokens."""
    return float(np.mean([np.mean(answer.kept < answer.visual_tokens // 2) for answer in answers]))


def test_rows_behind_the_last_picture_do_not_favour_the_first(pipeline: SglPipeline) -> None:
    """Half of the questions are about each. Rows of the second one's label see the first alone."""
    shares, right = {}, {}
    for rows in (ScoreRows.BEHIND_LAST, ScoreRows.PROMPT_AND_GENERATED):
        answers, expected = ask(pipeline, rows)
        shares[rows] = share_of_first(answers)
        right[rows] = np.mean([answer.text == said for answer, said in zip(answers, expected, strict=True)])
    assert shares[ScoreRows.PROMPT_AND_GENERATED] > 0.7
    assert 0.25 < shares[ScoreRows.BEHIND_LAST] < 0.5
    assert min(right.values()) > 0.65
