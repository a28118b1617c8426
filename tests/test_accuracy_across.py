"""The committed miniature in Qwen2-VL's layout guides the large one in InternVL2's: accuracy says what it keeps."""

from pathlib import Path

import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, GuidanceSource
from engine.evaluation.benchmark import mean
from engine.evaluation.run import Way, answer_benchmark
from engine.runtime.pipeline import SglPipeline
from tools.demo import PAIR
from tools.miniature.benchmark import MINIATURE
from tools.miniature.study import ALONE, LARGE_ANSWERS, SMALL_ANSWERS

QUESTIONS = 100
FLOORS = {0.35: 0.98, 0.09: 0.90}
"""Average retention -> share of the unpruned large model's score that guidance keeps, and chance does not."""
pytestmark = pytest.mark.xdist_group("accuracy")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    directory = tmp_path_factory.mktemp("across")
    build_pair(BuildConfig(PAIR / "small-qwen2-vl", PAIR / "large", directory, max_tokens=256, max_batch=25))
    return SglPipeline.load(directory, threads=1)


def score(pipeline: SglPipeline, path: Path, guidance: GuidanceConfig, exit: ExitConfig = LARGE_ANSWERS) -> float:
    """Share of right answers."""
    way = Way(guidance, exit, MINIATURE.max_new_tokens)
    records = answer_benchmark(pipeline, MINIATURE, MINIATURE.load(Path())[:QUESTIONS], way, path)
    return mean([record.grade for record in records if record.grade is not None])


@pytest.fixture(scope="module")
def unpruned(pipeline: SglPipeline, tmp_path_factory: pytest.TempPathFactory) -> float:
    return score(pipeline, tmp_path_factory.mktemp("unpruned") / "large.jsonl", ALONE)


@pytest.mark.parametrize(("retention", "floor"), FLOORS.items())
def test_a_guide_of_another_family_keeps_what_matters(
    pipeline: SglPipeline, unpruned: float, tmp_path: Path, retention: float, floor: float
) -> None:
    guided = score(pipeline, tmp_path / "guided.jsonl", GuidanceConfig(average_retention=retention))
    assert guided >= floor * unpruned
    chance = GuidanceConfig(source=GuidanceSource.RANDOM, average_retention=retention)
    assert score(pipeline, tmp_path / "random.jsonl", chance) < (floor - 0.2) * unpruned


def test_the_guide_reads_pictures_of_native_size(pipeline: SglPipeline, tmp_path: Path) -> None:
    """It is worth asking, too."""
    assert score(pipeline, tmp_path / "small.jsonl", ALONE, SMALL_ANSWERS) > 0.5
