"""LLaVA-OneVision as transformers saves it, and the same in lmms-lab's layout: built whole and asked, against its own
processor and model."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors import safe_open

from engine.build.builder import build_pair
from engine.config import BuildConfig, GuidanceConfig, GuidanceSource, ScoreRows
from engine.families.llava_onevision.prompt import ONE_LINE
from engine.families.llava_qwen.config import TOWERS
from engine.runtime.guidance import score_rows
from engine.runtime.pipeline import SglPipeline
from tests.prefilled import Prefilled
from tests.saved_llava_onevision import GRID, TOWER, TOWER_SIZES, Saved, save
from tests.tolerance import TOLERANCE
from tests.whole import NEW_TOKENS, QUESTION, ask, check_answers, check_cascade, noise, read

WIDTH = 48
CASES: dict[str, dict[str, Any]] = {
    "older names": {},
    "scaled down, names of the modules, tied": {"max_tiles": 2, "older_names": False, "is_tied": True},
    "turns on one line": {"template": ONE_LINE},
    "as lmms-lab publishes them": {"is_published": True},
    "as lmms-lab publishes them, scaled down, tied": {"is_published": True, "is_tied": True, "max_tiles": 2},
}
SIZES = [(60, 20), (20, 60), (90, 90), (1, 1), (300, 3), (85, 71), (31, 30), (28, 2800)]
"""Width and height."""


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOWERS, TOWER, TOWER_SIZES)
        yield save(tmp_path_factory.mktemp("saved"), **CASES[request.param])


@pytest.fixture(scope="module")
def built(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("built") / "engine"
    pair = BuildConfig(saved.directory, saved.directory, out, max_tokens=512, max_batch=4, prune_layers=(2,))
    build_pair(pair)
    return SglPipeline.load(out, threads=1)


def test_names_are_what_the_case_says(saved: Saved, request: pytest.FixtureRequest) -> None:
    case = CASES[request.node.callspec.params["saved"]]
    with safe_open(saved.directory / "model.safetensors", "np") as file:
        names = set(file.keys())
    older, published = case.get("older_names", True), case.get("is_published", False)
    newline = "image_newline" if older and not published else "model.image_newline"
    assert {name for name in names if "newline" in name} == {newline}
    assert any(name.startswith("model.vision_tower.vision_tower.vision_model.") for name in names) == published
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


@pytest.fixture(scope="module")
def ends(saved: Saved) -> list[int]:
    """Tokens that end an answer."""
    return [saved.processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>",)]


def test_answers_are_those_of_generate_alone_and_together(saved: Saved, built: SglPipeline, ends: list[int]) -> None:
    check_answers(saved, built, [[noise(60, 20)], [noise(20, 60), noise(90, 41)], [], [noise(85, 71)]], ends)


@pytest.mark.parametrize("sizes", [[(85, 71)], [(20, 60), (90, 41)]], ids=str)
def test_the_cascade_is_sgl(saved: Saved, built: SglPipeline, ends: list[int], sizes: list[tuple[int, int]]) -> None:
    answer, prompt, rows = check_cascade(saved, built, [noise(*size) for size in sizes], ends)
    assert answer.importance is not None
    assert answer.visual_tokens == len(answer.importance) < len(prompt.features)
    assert set(prompt.feature_rows()) - set(prompt.visual_positions) <= set(rows), "ends of lines stay"


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
