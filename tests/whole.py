"""A checkpoint that transformers saved, built whole and asked: what holds of every family, against its eager model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.runtime.answer import Answer
from engine.runtime.guidance import keep_rows
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning
from engine.runtime.question import Question
from engine.runtime.vision import pack
from engine.target import Precision
from tests.eager import Saved, agreement, importance, pruned_answer
from tests.tolerance import TOLERANCE

QUESTION = "How many red squares are there?"
NEW_TOKENS = 20


def noise(width: int, height: int) -> Image.Image:
    """Every pixel by itself."""
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def read(
    model: VisionLanguageModel, images: list[Image.Image], new_tokens: int = NEW_TOKENS
) -> tuple[Seen, PromptTokens]:
    seen = model.look(images, QUESTION, new_tokens)
    features = [pack(model.vision.encode(part.pixels), part.packing) for part in seen.pieces]
    return seen, seen.prompt(features, model.config.vision.output_size)


def ask(images: list[Image.Image], **settings: Any) -> Question:
    plain = {"guidance": GuidanceConfig(enabled=False), "exit": ExitConfig(enabled=False)}
    return Question(tuple(images), QUESTION, **(plain | settings), sampling=SamplingConfig(max_new_tokens=NEW_TOKENS))


@torch.no_grad()
def generate(saved: Saved, images: list[Image.Image], ends: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and their probabilities. ends: tokens that end an answer."""
    generated = saved.model.generate(
        **saved.inputs(images, QUESTION),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    probabilities = [scores[0].softmax(-1).max().item() for scores in generated.scores]
    return generated.sequences[0, -len(probabilities) :].tolist(), np.array(probabilities)


def check_answers(saved: Saved, built: SglPipeline, pictures: list[list[Image.Image]], ends: Sequence[int]) -> None:
    """Of questions about so many pictures each: those of `generate`, alone and together."""
    expected = [generate(saved, images, ends) for images in pictures]
    together = built.answer_batch([ask(images) for images in pictures])
    for images, answer, (tokens, probabilities) in zip(pictures, together, expected, strict=True):
        assert list(answer.token_ids) == tokens
        assert_allclose(answer.probabilities, probabilities, **TOLERANCE["fp32"])
        (alone,) = built.answer_batch([ask(images)])
        assert (alone.token_ids, alone.probabilities) == (answer.token_ids, answer.probabilities)


def check_cascade(
    saved: Saved, built: SglPipeline, images: list[Image.Image], ends: Sequence[int]
) -> tuple[Answer, PromptTokens, np.ndarray]:
    """Importance, the consistency pass and the pruned answer, from full attention matrices and without caches
    -> the answer, its prompt, and which rows of that were kept."""
    guidance = GuidanceConfig(retention_ratio=0.3, prune_layer=2)
    exit = ExitConfig(exit_threshold=2.0, consistency_retention=0.25)
    (answer,) = built.answer_batch([ask(images, guidance=guidance, exit=exit)])
    tokens, _ = generate(saved, images, ends)
    _, prompt = read(built.small, images)
    expected = importance(saved, images, QUESTION, prompt, tokens)
    assert answer.importance is not None
    assert_allclose(answer.importance, expected, rtol=1e-4)

    order, length = np.argsort(-expected, kind="stable"), len(prompt.ids)
    few = keep_rows(prompt.visual_positions, np.sort(order[: int(len(order) * 0.25)]), length)
    assert answer.decision is not None
    assert answer.decision.consistency == pytest.approx(agreement(saved, prompt, tokens, few), rel=1e-3)

    kept = np.sort(order[: int(len(order) * 0.3)])
    assert_array_equal(answer.kept, kept)
    rows = keep_rows(prompt.visual_positions, kept, length)
    assert list(answer.token_ids) == pruned_answer(saved, prompt, Pruning(2, rows), len(answer.token_ids))
    return answer, prompt, rows


def check_int8(checkpoint: Path, out: Path) -> None:
    """Features are close to float32's, and answers the same alone and together."""
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)) for seed in range(3)]
    features = {}
    for precision in (Precision.FP32, Precision.INT8):
        pair = BuildConfig(
            checkpoint, checkpoint, out / precision, precision=precision, max_tokens=256, prune_layers=(2,)
        )
        build_pair(pair)
        pipeline = SglPipeline.load(out / precision, threads=1)
        pieces = [pipeline.large.look([image], "?", 4).pieces[0] for image in images]
        features[precision] = [pipeline.large.vision.encode(part.pixels) for part in pieces]
    for exact, quantized in zip(*features.values(), strict=True):
        cosine = (exact * quantized).sum() / np.linalg.norm(exact) / np.linalg.norm(quantized)
        assert 0.995 < cosine < 1
    together = pipeline.answer_batch([Question((image,), "What is there?") for image in images])
    for image, answer in zip(images, together, strict=True):
        assert pipeline.answer(image, "What is there?").probabilities == answer.probabilities
