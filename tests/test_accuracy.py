"""The committed miniature pair through compiled engines: guidance keeps the accuracy that chance loses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, GuidanceConfig, GuidanceSource, Precision
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Request
from tools.demo import PAIR
from tools.evaluation.benchmark import mean
from tools.evaluation.miniature import MINIATURE
from tools.evaluation.run import Way, run
from tools.evaluation.study import ALONE, LARGE_ANSWERS, SMALL_ANSWERS
from tools.miniature.questions import exam, picture
from tools.miniature.scenes import Split

QUESTIONS = 100
RETENTION = 0.35
FLOOR = 0.93
"""Share of right answers that guidance by the small model must reach, and chance must not."""
pytestmark = pytest.mark.xdist_group("accuracy")


def load(directory: Path, precision: Precision) -> SglPipeline:
    build_pair(BuildConfig(PAIR / "small", PAIR / "large", directory, precision=precision, max_tokens=256))
    return SglPipeline.load(directory, threads=1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    return load(tmp_path_factory.mktemp("fp32"), Precision.FP32)


def share_right(pipeline: SglPipeline, guidance: GuidanceConfig, path: Path, small: bool = False) -> float:
    way = Way(guidance, SMALL_ANSWERS if small else LARGE_ANSWERS, MINIATURE.max_new_tokens)
    records = run(pipeline, MINIATURE, MINIATURE.load(Path())[:QUESTIONS], way, path)
    return mean([record.score for record in records if record.score is not None])


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


def last_logits(model: VisionLanguageModel, image: Image.Image, question: str) -> np.ndarray:
    """[vocabulary] after the prompt."""
    visuals = model.split((image,))
    encoded = model.tokenize(question, visuals, 1)
    (features,) = model.encode([visuals])
    return model.language.prefill([Request(encoded.prompt(features))], 1).logits[0].astype(np.float64)


def test_int8_hardly_moves_the_last_logits(pipeline: SglPipeline, tmp_path: Path) -> None:
    """Whole models, pictures to logits."""
    int8 = load(tmp_path, Precision.INT8)
    for name in ("small", "large"):
        cosines = []
        for seed, question in exam(Split.TEST, 24):
            image = picture(seed)
            exact, coarse = (last_logits(getattr(one, name), image, question.text) for one in (pipeline, int8))
            cosines.append(exact @ coarse / np.linalg.norm(exact) / np.linalg.norm(coarse))
        assert np.mean(cosines) >= 0.999, name
