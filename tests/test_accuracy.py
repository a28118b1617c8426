"""The committed miniature pair through compiled engines: guidance keeps the accuracy that chance loses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, Draft, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.evaluation.benchmark import mean
from engine.evaluation.record import Record
from engine.evaluation.run import Way, answer_benchmark
from engine.runtime.answer import AnsweredBy
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import prompt_rows
from engine.runtime.question import Question
from engine.target import Precision
from tools.demo import PAIR
from tools.miniature.benchmark import MINIATURE
from tools.miniature.questions import exam, picture
from tools.miniature.scenes import Split
from tools.miniature.study import ALONE, LARGE_ANSWERS, SMALL_ANSWERS

QUESTIONS = 100
RETENTION = 0.35
FLOOR = 0.93
"""Share of right answers that guidance by the small model must reach, and chance must not."""
pytestmark = pytest.mark.xdist_group("accuracy")


def load(directory: Path, precision: Precision, ranks: int = 1) -> SglPipeline:
    settings = {"precision": precision, "max_tokens": 256, "max_batch": 25, "world_size": ranks}
    build_pair(BuildConfig(PAIR / "small", PAIR / "large", directory, **settings))  # type: ignore[arg-type]
    return SglPipeline.load(directory, threads=1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    return load(tmp_path_factory.mktemp("fp32"), Precision.FP32)


def ask(pipeline: SglPipeline, guidance: GuidanceConfig, exit: ExitConfig, path: Path) -> list[Record]:
    way = Way(guidance, exit, MINIATURE.max_new_tokens)
    return answer_benchmark(pipeline, MINIATURE, MINIATURE.load(Path())[:QUESTIONS], way, path)


def share_right(pipeline: SglPipeline, guidance: GuidanceConfig, path: Path, small: bool = False) -> float:
    records = ask(pipeline, guidance, SMALL_ANSWERS if small else LARGE_ANSWERS, path)
    return mean([record.grade for record in records if record.grade is not None])


def test_guidance_by_the_small_model_reaches_the_floor(pipeline: SglPipeline, tmp_path: Path) -> None:
    guided = GuidanceConfig(average_retention=RETENTION)
    assert share_right(pipeline, guided, tmp_path / "guided.jsonl") >= FLOOR


def test_guidance_by_chance_misses_the_floor(pipeline: SglPipeline, tmp_path: Path) -> None:
    """Else the floor would guard nothing."""
    chance = GuidanceConfig(source=GuidanceSource.RANDOM, average_retention=RETENTION)
    assert share_right(pipeline, chance, tmp_path / "random.jsonl") < FLOOR - 0.2


def test_the_small_model_is_worth_asking_and_not_as_good_as_the_large(pipeline: SglPipeline, tmp_path: Path) -> None:
    small = share_right(pipeline, ALONE, tmp_path / "small.jsonl", small=True)
    assert 0.7 < small < share_right(pipeline, ALONE, tmp_path / "large.jsonl") - 0.08


def cascade(pipeline: SglPipeline, directory: Path) -> list[tuple[object, ...]]:
    """What is answered with pruning and early exit on."""
    records = ask(pipeline, GuidanceConfig(), ExitConfig(), directory / "cascade.jsonl")
    return [(r.prediction, r.answered_by, r.small_text, r.num_kept) for r in records]


def test_ranks_answer_like_one_process(pipeline: SglPipeline, tmp_path: Path) -> None:
    expected = cascade(pipeline, tmp_path)
    assert {answered_by for _, answered_by, *_ in expected} == set(AnsweredBy)
    for ranks in (2, 4):
        several = load(tmp_path / f"tp{ranks}" / "pair", Precision.FP32, ranks)
        assert cascade(several, tmp_path / f"tp{ranks}") == expected


@pytest.mark.parametrize(
    "guidance", [GuidanceConfig(average_retention=RETENTION), GuidanceConfig(prune_layer=0, retention_ratio=0.09)]
)
@pytest.mark.parametrize("exit", [LARGE_ANSWERS, ExitConfig()], ids=["large", "exits"])
def test_a_draft_changes_no_token(pipeline: SglPipeline, guidance: GuidanceConfig, exit: ExitConfig) -> None:
    """It saves most of the steps."""
    asked = [
        Question(
            (picture(seed),), question.text, guidance, exit, SamplingConfig(max_new_tokens=MINIATURE.max_new_tokens)
        )
        for seed, question in exam(Split.TEST, QUESTIONS)
    ]
    plain = SamplingConfig(max_new_tokens=MINIATURE.max_new_tokens, draft=Draft.NONE)
    drafted = pipeline.answer_batch(asked)
    for found, expected in zip(
        drafted, pipeline.answer_batch([replace(one, sampling=plain) for one in asked]), strict=True
    ):
        assert (found.token_ids, found.answered_by) == (expected.token_ids, expected.answered_by)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    steps = sum(len(answer.token_ids) - 1 for answer in drafted if answer.answered_by is AnsweredBy.LARGE)
    saved = sum(answer.accepted for answer in drafted) / steps
    assert saved > (0.8 if exit is LARGE_ANSWERS else 0.3)


def last_logits(model: VisionLanguageModel, image: Image.Image, question: str) -> np.ndarray:
    """[vocabulary] after the prompt."""
    seen = model.look((image,), question, 1)
    features = [model.vision.encode(part.pixels) for part in seen.pieces]
    rows = prompt_rows(seen.prompt(features, model.config.vision.output_size))
    slot, last = model.language.open(model.need(rows, 1)), np.array([len(rows) - 1])
    logits = model.language.extend(slot, rows, last, last[:0])[0]
    model.language.close(slot)
    return np.array(logits, np.float64)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    return load(tmp_path_factory.mktemp("int8"), Precision.INT8)


def test_int8_hardly_moves_the_last_logits(pipeline: SglPipeline, int8: SglPipeline) -> None:
    """Whole models, pictures to logits."""
    for name in ("small", "large"):
        cosines = []
        for seed, question in exam(Split.TEST, 24):
            image = picture(seed)
            exact, coarse = (last_logits(getattr(one, name), image, question.text) for one in (pipeline, int8))
            cosines.append(exact @ coarse / np.linalg.norm(exact) / np.linalg.norm(coarse))
        assert np.mean(cosines) >= 0.999, name


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    return load(tmp_path_factory.mktemp("int4"), Precision.INT4)


def test_int4_moves_the_last_logits_a_little(pipeline: SglPipeline, int4: SglPipeline) -> None:
    """Likewise."""
    for name in ("small", "large"):
        cosines = []
        for seed, question in exam(Split.TEST, 24):
            image = picture(seed)
            exact, coarse = (last_logits(getattr(one, name), image, question.text) for one in (pipeline, int4))
            cosines.append(exact @ coarse / np.linalg.norm(exact) / np.linalg.norm(coarse))
        assert np.mean(cosines) >= 0.99, (name, np.mean(cosines))


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_answers_in_few_bits_are_the_same_alone_and_together(
    precision: Precision, request: pytest.FixtureRequest
) -> None:
    """With pruning and early exit on, bit by bit."""
    coarse: SglPipeline = request.getfixturevalue(precision)
    sampling = SamplingConfig(max_new_tokens=8)
    questions = [Question((picture(seed),), asked.text, sampling=sampling) for seed, asked in exam(Split.TEST, 24)]
    together = coarse.answer_batch(questions)
    assert {answer.answered_by for answer in together} == set(AnsweredBy)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = coarse.answer_batch([question])
        assert alone.token_ids == answer.token_ids
        assert alone.probabilities == answer.probabilities
        assert alone.decision == answer.decision
        np.testing.assert_array_equal(alone.kept, answer.kept)
