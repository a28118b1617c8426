"""Two and four ranks compute what one does: features, logits, scores, answers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.build.quantize import Kernel, fidelity
from engine.config import BuildConfig, ExitConfig, ExitCriterion, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.manifest import read_manifest
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning, Request
from engine.runtime.question import Question
from engine.target import Precision
from tests.tolerance import TOLERANCE

pytestmark = pytest.mark.xdist_group("tensor parallel")
Pipelines = Callable[[int], SglPipeline]
WORLD_SIZES = (2, 4)
TOKENS = (5, 17, 99, 3)


def make_prompt(length: int, visual: list[int], seed: int) -> PromptTokens:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((len(visual), 128), dtype=np.float32) * 0.3
    return PromptTokens(rng.integers(0, 517, length), np.array(visual, np.int64), features)


PROMPTS = (make_prompt(23, list(range(4, 16)), 0), make_prompt(7, [3], 1), make_prompt(9, [], 2))


def run(model: VisionLanguageModel, requests: list[Request]) -> list[np.ndarray]:
    """Logits of a prefill and of decode steps, what was scored, and the scoring pass of the first request."""
    batch = len(requests)
    generation = model.language.prefill(requests, len(TOKENS) + 1)
    results = [generation.logits.copy()]
    for step, token in enumerate(TOKENS):
        active = np.arange(batch) <= step
        results.append(generation.decode(np.full(batch, token), active, active)[active].copy())
    results += [generation.visual_scores(index).copy() for index in range(batch)]
    if requests[0].pruning is None:
        results.append(generation.score(0, np.array([1, 3]), np.array(TOKENS)).copy())
    return results


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("prune_layer", [None, 0, 1, 2])
def test_logits_and_scores(pipelines: Pipelines, world_size: int, prune_layer: int | None) -> None:
    if prune_layer is None:
        requests = [Request(prompt, score_rows=np.arange(len(prompt.ids) - 2, len(prompt.ids))) for prompt in PROMPTS]
    else:
        kept = np.setdiff1d(np.arange(23), [4, 5, 8, 9, 10, 14])
        requests = [Request(PROMPTS[0], Pruning(prune_layer, kept)), Request(PROMPTS[2])]
    expected = run(pipelines(1).large, requests)
    actual = run(pipelines(world_size).large, requests)
    for one, other in zip(actual, expected, strict=True):
        assert_allclose(one, other, **TOLERANCE["fp32"])


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("tiles", [0, 1, 7])
def test_tiles_are_shared_out(pipelines: Pipelines, world_size: int, tiles: int) -> None:
    pixels = np.random.default_rng(3).standard_normal((tiles, 3, 112, 112), dtype=np.float32)
    expected = pipelines(1).large.vision.encode(pixels)
    assert_allclose(pipelines(world_size).large.vision.encode(pixels), expected, **TOLERANCE["fp32"])


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("source", [GuidanceSource.SMALL, GuidanceSource.ORACLE, GuidanceSource.FASTV])
def test_answers(pipelines: Pipelines, picture: Image.Image, world_size: int, source: GuidanceSource) -> None:
    """In a batch with different lengths, prune layers, sampling and exits; at least one question exits early."""
    questions = [
        Question(
            (picture, picture.rotate(90, expand=True))[: 1 + index % 2],
            "What is in the picture?" + " Say more." * index,
            GuidanceConfig(source=source, retention_ratio=0.2 + 0.1 * index, prune_layer=1 + index % 2),
            ExitConfig(criterion=ExitCriterion.CONFIDENCE, exit_threshold=0.0 if index == 1 else 1.0),
            SamplingConfig(max_new_tokens=6, temperature=index * 0.5, top_k=4, seed=index),
        )
        for index in range(4)
    ]
    expected = pipelines(1).answer_batch(questions)
    actual = pipelines(world_size).answer_batch(questions)
    assert [answer.early_exit for answer in actual] == [False, True, False, False]
    for one, other in zip(actual, expected, strict=True):
        assert (one.text, one.token_ids, one.answered_by) == (other.text, other.token_ids, other.answered_by)
        assert_allclose(one.probabilities, other.probabilities, **TOLERANCE["fp32"])
        if one.kept is not None and other.kept is not None:
            assert_array_equal(one.kept, other.kept)


def test_int8(pipelines: Pipelines, config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    """Both ranks got the kernels that one rank would, and compute what float32 does as closely as int8 can."""
    out = tmp_path / "int8"
    build_pair(config(out, world_size=2, precision=Precision.INT8))
    reports = [(out / f"large/rank{rank}/language.quantization.json").read_text() for rank in range(2)]
    assert reports[0] == reports[1]
    report = json.loads(reports[0])
    kernels = {matrix["kernel"] for matrix in report["matrices"].values()}
    assert kernels - {Kernel.FLOAT32}, "some matrix is int8"
    files = {file for component in read_manifest(out).components.values() for file in component.files}
    assert "large/rank1/language.000.onnx" in files
    requests = [Request(prompt) for prompt in PROMPTS]
    expected = pipelines(1).large.language.prefill(requests, 1).logits
    pipeline = SglPipeline.load(out, threads=1)
    actual = pipeline.large.language.prefill(requests, 1).logits
    measured = fidelity(actual, expected)
    assert measured.cosine > 0.999
    assert measured.relative_error > 0, "something was quantized"
