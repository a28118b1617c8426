"""LLaVA-OneVision checkpoints that transformers saved: built whole and asked, against its own processor and model."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors import safe_open

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig, ScoreRows
from engine.families.llava_onevision.prompt import ONE_LINE
from engine.runtime.guidance import keep_rows, score_rows
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning
from engine.runtime.question import Question
from engine.runtime.vision import pack
from tests.eager import agreement, importance, pruned_answer
from tests.prefilled import Prefilled
from tests.saved_llava_onevision import GRID, Saved, save
from tests.tolerance import TOLERANCE

QUESTION = "How many red squares are there?"
NEW_TOKENS = 20
WIDTH = 48
CASES: dict[str, dict[str, Any]] = {
    "older names": {},
    "scaled down, names of the modules, tied": {"max_tiles": 2, "older_names": False, "is_tied": True},
    "turns on one line": {"template": ONE_LINE},
}
SIZES = [(60, 20), (20, 60), (90, 90), (1, 1), (300, 3), (85, 71), (31, 30), (28, 2800)]
"""Width and height."""


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("saved"), **CASES[request.param])


@pytest.fixture(scope="module")
def built(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("built") / "engine"
    pair = BuildConfig(saved.directory, saved.directory, out, max_tokens=512, max_batch=4, prune_layers=(2,))
    build_pair(pair)
    return SglPipeline.load(out, threads=1)


def read(model: VisionLanguageModel, images: list[Image.Image]) -> tuple[Seen, PromptTokens]:
    seen = model.look(images, QUESTION, NEW_TOKENS)
    features = [pack(model.vision.encode(part.pixels), part.packing) for part in seen.pieces]
    return seen, seen.prompt(features, WIDTH)


def test_names_are_what_the_case_says(saved: Saved, request: pytest.FixtureRequest) -> None:
    case = CASES[request.node.callspec.params["saved"]]
    with safe_open(saved.directory / "model.safetensors", "np") as file:
        names = set(file.keys())
    assert ("image_newline" in names) == case.get("older_names", True)
    assert any(name.endswith("lm_head.weight") for name in names) != case.get("is_tied", False)


@pytest.mark.parametrize("sizes", [[], *([size] for size in SIZES), [(60, 20), (20, 60), (33, 33)]], ids=str)
@torch.no_grad()
def test_prompt_pixels_features_and_logits(saved: Saved, built: SglPipeline, sizes: list[tuple[int, int]]) -> None:
    images = [noise(*size) for size in sizes]
    inputs = saved.inputs(images, QUESTION)
    seen, prompt = read(built.large, images)
    assert_array_equal(seen.encoded.ids, inputs["input_ids"][0].numpy())
    if images:
        for part, expected in zip(seen.pieces, inputs["pixel_values"].numpy(), strict=True):
            assert_array_equal(part.pixels, expected[: len(part.pixels)], strict=True)
        pictures = {name: inputs[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
        features = saved.model.model.get_image_features(**pictures).pooler_output
        assert_allclose(prompt.features, np.concatenate(features), **TOLERANCE["fp32"])
    one = Prefilled(built.large.language, prompt, NEW_TOKENS, prune_layers=(2,), chunk=13)
    one.close()
    assert_allclose(one.logits, saved.model(**inputs).logits[0, -1].numpy(), **TOLERANCE["fp32"])


@pytest.mark.parametrize("sizes", [[(85, 71)], [(60, 20), (20, 60)]], ids=str)
@torch.no_grad()
def test_ends_of_lines_have_no_place(saved: Saved, built: SglPipeline, sizes: list[tuple[int, int]]) -> None:
    """The rows that are not visual tokens are the newline, as transformers reads it."""
    seen, prompt = read(built.large, [noise(*size) for size in sizes])
    ends = np.setdiff1d(np.arange(len(prompt.features)), prompt.visual_features())
    assert len(ends) >= len(sizes)
    newline = saved.model.model.image_newline.numpy()
    assert_allclose(prompt.features[ends], np.broadcast_to(newline, (len(ends), WIDTH)), **TOLERANCE["op"])
    assert len(seen.grid.boxes) == len(prompt.visual_positions) == len(prompt.features) - len(ends)
    for rows in (ScoreRows.PROMPT_AND_GENERATED, ScoreRows.BEHIND_LAST):
        scored = score_rows(prompt.visual_positions, len(prompt.ids), rows, feature_rows=prompt.feature_rows())
        assert not set(scored) & set(prompt.feature_rows()), "they are no text either"
    assert scored[0] == prompt.feature_rows()[-1] + 1


def generate(saved: Saved, images: list[Image.Image]) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and their probabilities."""
    generated = saved.model.generate(
        **saved.inputs(images, QUESTION),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=saved.processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    probabilities = [scores[0].softmax(-1).max().item() for scores in generated.scores]
    return generated.sequences[0, -len(probabilities) :].tolist(), np.array(probabilities)


def ask(images: list[Image.Image], **settings: Any) -> Question:
    plain = {"guidance": GuidanceConfig(enabled=False), "exit": ExitConfig(enabled=False)}
    return Question(tuple(images), QUESTION, **(plain | settings), sampling=SamplingConfig(max_new_tokens=NEW_TOKENS))


@torch.no_grad()
def test_answers_are_those_of_generate_alone_and_together(saved: Saved, built: SglPipeline) -> None:
    pictures = [[noise(60, 20)], [noise(20, 60), noise(90, 41)], [], [noise(85, 71)]]
    expected = [generate(saved, images) for images in pictures]
    together = built.answer_batch([ask(images) for images in pictures])
    for images, answer, (tokens, probabilities) in zip(pictures, together, expected, strict=True):
        assert list(answer.token_ids) == tokens
        assert_allclose(answer.probabilities, probabilities, **TOLERANCE["fp32"])
        (alone,) = built.answer_batch([ask(images)])
        assert (alone.token_ids, alone.probabilities) == (answer.token_ids, answer.probabilities)


@pytest.mark.parametrize("sizes", [[(85, 71)], [(20, 60), (90, 41)]], ids=str)
def test_the_cascade_is_sgl(saved: Saved, built: SglPipeline, sizes: list[tuple[int, int]]) -> None:
    """Importance, the consistency pass and the pruned answer, from full attention matrices and without caches."""
    images = [noise(*size) for size in sizes]
    guidance = GuidanceConfig(retention_ratio=0.3, prune_layer=2)
    exit = ExitConfig(exit_threshold=2.0, consistency_retention=0.25)
    (answer,) = built.answer_batch([ask(images, guidance=guidance, exit=exit)])
    tokens, _ = generate(saved, images)
    _, prompt = read(built.small, images)
    expected = importance(saved, images, QUESTION, prompt, tokens)
    assert answer.importance is not None
    assert_allclose(answer.importance, expected, rtol=1e-4)
    assert answer.visual_tokens == len(expected) < len(prompt.features)

    order, length = np.argsort(-expected, kind="stable"), len(prompt.ids)
    few = keep_rows(prompt.visual_positions, np.sort(order[: int(len(order) * 0.25)]), length)
    assert answer.decision is not None
    assert answer.decision.consistency == pytest.approx(agreement(saved, prompt, tokens, few), rel=1e-3)

    kept = np.sort(order[: int(len(order) * 0.3)])
    assert_array_equal(answer.kept, kept)
    rows = keep_rows(prompt.visual_positions, kept, length)
    assert set(prompt.feature_rows()) - set(prompt.visual_positions) <= set(rows), "ends of lines stay"
    assert list(answer.token_ids) == pruned_answer(saved, prompt, Pruning(2, rows), len(answer.token_ids))


def test_merging_leaves_the_ends_of_lines(built: SglPipeline) -> None:
    guidance = GuidanceConfig(source=GuidanceSource.TOME, average_retention=0.5)
    (answer,) = built.answer_batch([ask([noise(85, 71)], guidance=guidance)])
    assert answer.kept is not None
    assert len(answer.kept) == answer.visual_tokens // 2
    assert answer.kept.max() < answer.visual_tokens


def test_one_of_several_pictures_is_a_square(built: SglPipeline) -> None:
    """A token beside the picture lies outside of it, and all are equally large."""
    seen, _ = read(built.large, [noise(60, 20), noise(20, 60)])
    wide, high = (part.boxes for part in seen.pieces)
    assert len(wide) == len(high) == GRID**2
    assert_allclose(wide[0], [0, -1, 1 / GRID, -1 + 3 / GRID], atol=1e-6)
    assert_allclose(high[:, [1, 0, 3, 2]].reshape(GRID, GRID, 4).swapaxes(0, 1).reshape(-1, 4), wide, atol=1e-6)
