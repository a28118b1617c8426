"""Two and four ranks compute what one does: features, logits, scores, answers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.build.quantize import MatrixKernel, fidelity
from engine.config import BuildConfig, ExitConfig, ExitCriterion, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.engine_directory import read_manifest
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Need, PromptTokens, Pruning, answer_rows, prompt_rows
from engine.runtime.question import Question
from engine.runtime.work import NONE
from engine.target import Precision
from tests.tensor_parallel.conftest import PRUNE_LAYERS, Engines
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


def prefill(
    model: VisionLanguageModel, prompts: Sequence[PromptTokens], **pruning: Any
) -> tuple[list[int], np.ndarray]:
    """Slots, and logits [B,vocab] of the last tokens. pruning: of all; without, the last two rows are scored."""
    slots, logits = [], []
    for prompt in prompts:
        rows = prompt_rows(prompt, Pruning(**pruning) if pruning else None)
        columns, scored = (None, NONE) if pruning else (prompt.visual_positions, np.arange(len(rows) - 2, len(rows)))
        lengths = tuple(len(kept) + len(TOKENS) + 1 for kept in rows.kept(PRUNE_LAYERS))
        slots.append(model.language.open(Need(lengths, columns)))
        logits.append(model.language.extend(slots[-1], rows, np.array([len(rows) - 1]), scored)[0].copy())
    return slots, np.array(logits)


def run(model: VisionLanguageModel, prompts: Sequence[PromptTokens], **pruning: Any) -> list[np.ndarray]:
    """Logits of prompts and of steps, which one slot after the other joins; what was scored; logits of a second answer
    to the first prompt.
    """
    language = model.language
    slots, logits = prefill(model, prompts, **pruning)
    results = [logits]
    for step, token in enumerate(TOKENS):
        joined = slots[: step + 1]
        counts = np.full(len(joined), not pruning)
        results.append(np.array(language.step(joined, np.full(len(joined), token), counts)))
    if not pruning:
        results += [np.array(language.visual_scores(slot)) for slot in slots]
    length = len(prompt_rows(prompts[0], Pruning(**pruning) if pruning else None))
    language.truncate(slots[0], length)
    again = answer_rows(length, np.array(TOKENS))
    results.append(np.array(language.extend(slots[0], again, np.array([1, 3]), NONE)))
    for slot in slots:
        language.close(slot)
    return results


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("prune_layer", [None, 0, 1, 2])
def test_logits_and_scores(pipelines: Pipelines, world_size: int, prune_layer: int | None) -> None:
    prompts, pruning = PROMPTS, {}
    if prune_layer is not None:
        kept = np.setdiff1d(np.arange(23), [4, 5, 8, 9, 10, 14])
        prompts, pruning = PROMPTS[:1], {"prune_layer": prune_layer, "rows": kept}
    expected = run(pipelines(1).large, prompts, **pruning)
    actual = run(pipelines(world_size).large, prompts, **pruning)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
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


def test_many_at_once_are_answered_like_each_alone(engines: Engines, picture: Image.Image) -> None:
    """To the last bit: prompts in chunks, slots that join and leave, large models that read twice, drawn tokens."""
    sources = (GuidanceSource.SMALL, GuidanceSource.FASTV, GuidanceSource.ORACLE, GuidanceSource.TOME)
    questions = [
        Question(
            (picture, picture.rotate(90, expand=True), picture)[: index % 3],
            "What is in the picture?" + " Say more." * (7 * index % 5),
            GuidanceConfig(source=sources[index % 4], retention_ratio=0.2 + 0.1 * index, prune_layer=1 + index % 2),
            ExitConfig(criterion=ExitCriterion.CONFIDENCE, exit_threshold=0.0 if index == 4 else 1.0),
            SamplingConfig(max_new_tokens=3 + 5 * index % 11, temperature=index % 2 * 0.8, top_k=4, seed=index),
        )
        for index in range(6)
    ]
    with SglPipeline.load(engines(2), threads=1, prefill_chunk=48) as pipeline:
        together = pipeline.answer_batch(questions)
        alone = [pipeline.answer_batch([question])[0] for question in questions]
    with SglPipeline.load(engines(1), threads=1, prefill_chunk=48) as pipeline:
        on_one_rank = pipeline.answer_batch(questions)
    assert [answer.answered_by is AnsweredBy.SMALL for answer in together] == [index == 4 for index in range(6)]
    for answer, same, near in zip(together, alone, on_one_rank, strict=True):
        assert same_but_for_time(answer, same)
        assert (answer.text, answer.token_ids, answer.finish_reason) == (near.text, near.token_ids, near.finish_reason)
        assert_allclose(answer.probabilities, near.probabilities, **TOLERANCE["fp32"])


def same_but_for_time(one: Answer, other: Answer) -> bool:
    """To the last bit."""
    timed = ("seconds", "engine_seconds", "reuse")  # what was known before depends on who came before
    fields = zip(vars(one).items(), vars(other).items(), strict=True)
    return all(name in timed or np.array_equal(value, same) for (name, value), (_, same) in fields)  # type: ignore[arg-type]


def test_slots_of_all_ranks_take_the_memory_of_one(pipelines: Pipelines) -> None:
    """Where each has key and value heads of its own."""
    need = Need((40, 30, 20))
    assert pipelines(2).large.language.nbytes(need) == pipelines(1).large.language.nbytes(need) > 0


@pytest.mark.parametrize(
    ("precision", "kernel"), [(Precision.INT8, MatrixKernel.PER_ROW), (Precision.INT4, MatrixKernel.INT4)]
)
def test_few_bits(
    pipelines: Pipelines, config: Callable[..., BuildConfig], tmp_path: Path, precision: Precision, kernel: MatrixKernel
) -> None:
    """Ranks got the kernels that one rank does, and say what it says; int8 says what float32 does, too."""
    outs = {world_size: tmp_path / str(world_size) for world_size in (1, 2)}
    for world_size, out in outs.items():
        build_pair(config(out, world_size=world_size, precision=precision))
    reports = [outs[1] / "large/rank0", *(outs[2] / f"large/rank{rank}" for rank in range(2))]
    whole, *ranks = [(directory / "language.quantization.json").read_text() for directory in reports]
    assert ranks == [whole, whole]
    kernels = [matrix["kernel"] for matrix in json.loads(whole)["matrices"].values()]
    assert kernels.count(kernel) >= 0.8 * len(kernels)
    files = {file for component in read_manifest(outs[2]).components.values() for file in component.files}
    assert "large/rank1/language.000.onnx" in files
    said = []
    for out in outs.values():
        with SglPipeline.load(out, threads=1) as pipeline:
            said.append(run(pipeline.large, PROMPTS[:2]))
    assert all(fidelity(two, one).cosine > 0.999 for one, two in zip(*said, strict=True))
    exact = run(pipelines(1).large, PROMPTS[:2])
    measured = [fidelity(actual, expected) for actual, expected in zip(said[1], exact, strict=True)]
    assert all(some.relative_error > 0 for some in measured), "something was quantized"
    if precision is Precision.INT8:
        assert all(some.cosine > 0.999 for some in measured)
