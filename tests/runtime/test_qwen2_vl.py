"""Qwen2-VL and Qwen2.5-VL as transformers saved them: built whole and asked, against its processor and eager model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors import safe_open

from engine.build.builder import build_pair
from engine.config import BuildConfig, ScoreRows
from engine.runtime.guidance import score_rows
from engine.runtime.pipeline import SglPipeline
from tests.prefilled import Prefilled
from tests.saved_qwen2_vl import MAX_PIXELS, SIDE, Saved, save
from tests.tolerance import TOLERANCE
from tests.whole import NEW_TOKENS, QUESTION, check_answers, check_cascade, noise, read

CASES = {
    "published names": {},
    "tied": {"is_tied": True},
    "names of the modules": {"published_names": False},
    "windows": {"has_windows": True},
    "windows, tied, names of the modules": {"has_windows": True, "is_tied": True, "published_names": False},
}
SIZES = [(1, 1), (SIDE, 100 * SIDE), (60, 20), (20, 60), (64, 64), (300, 11), (12, 12)]
"""Width and height."""


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("saved"), **CASES[request.param])


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
    assert ("visual.blocks.0.attn.qkv.weight" in names) == case.get("published_names", True)
    assert ("lm_head.weight" in names) != case.get("is_tied", False)


@pytest.mark.parametrize("sizes", [[], *([size] for size in SIZES), [(60, 20), (20, 60), (33, 70)]], ids=str)
@torch.no_grad()
def test_prompt_pixels_features_and_logits(saved: Saved, built: SglPipeline, sizes: list[tuple[int, int]]) -> None:
    images = [noise(*size) for size in sizes]
    inputs = saved.inputs(images, QUESTION)
    seen, prompt = read(built.large, images)
    assert_array_equal(seen.encoded.ids, inputs["input_ids"][0].numpy())
    if images:
        pixels = [part.pixels.reshape(-1, part.pixels.shape[-1]) for part in seen.pieces]
        assert_array_equal(np.concatenate(pixels), inputs["pixel_values"].numpy())
        features = saved.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        assert_allclose(prompt.features, np.concatenate(features), **TOLERANCE["fp32"])
        grids = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw")}
        positions, delta = saved.model.model.get_rope_index(**grids)
        assert_array_equal(prompt.positions().T, positions[:, 0].numpy())
        assert prompt.next_position() == len(prompt.ids) + int(delta[0, 0])
    one = Prefilled(built.large.language, prompt, NEW_TOKENS, prune_layers=(2,), chunk=13)
    one.close()
    assert_allclose(one.logits, saved.model(**inputs).logits[0, -1].numpy(), **TOLERANCE["fp32"])


@pytest.fixture(scope="module")
def ends(saved: Saved) -> list[int]:
    """Tokens that end an answer."""
    return [saved.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]


def test_answers_are_those_of_generate_alone_and_together(saved: Saved, built: SglPipeline, ends: list[int]) -> None:
    check_answers(saved, built, [[noise(60, 20)], [noise(20, 60), noise(90, 41)], [], [noise(33, 70)]], ends)


@pytest.mark.parametrize("sizes", [[(60, 20)], [(20, 60), (90, 41)]], ids=str)
def test_the_cascade_is_sgl(saved: Saved, built: SglPipeline, ends: list[int], sizes: list[tuple[int, int]]) -> None:
    check_cascade(saved, built, [noise(*size) for size in sizes], ends)


def test_scored_rows_are_text_behind_the_pictures(saved: Saved, built: SglPipeline) -> None:
    seen, _ = read(built.small, [noise(60, 20)])
    visual = seen.encoded.visual_positions
    rows = score_rows(visual, len(seen.encoded.ids), ScoreRows.BEHIND_LAST)
    assert_array_equal(rows, np.arange(visual[-1] + 1, len(seen.encoded.ids)))


def test_a_picture_is_known_by_its_shape_too(built: SglPipeline) -> None:
    """A picture of one colour has the same patches whichever way it lies."""
    wide, high = (Image.new("RGB", size, (200, 30, 90)) for size in ((64, 32), (32, 64)))
    cut = [built.large.look([image], QUESTION, 1).pieces[0] for image in (wide, high)]
    assert_array_equal(*(pieces.pixels.reshape(-1, pieces.pixels.shape[-1]) for pieces in cut))
    assert cut[0].digest != cut[1].digest


def test_pixel_limits_of_a_build(saved: Saved, tmp_path: Path) -> None:
    """A larger picture is scaled as the published preprocessing does with that limit, and the build says so."""
    pair = BuildConfig(
        saved.directory, saved.directory, tmp_path / "engine", max_tokens=256, max_pixels=MAX_PIXELS // 4
    )
    report = build_pair(pair)
    assert any(f"more than {MAX_PIXELS // 4:,} pixels are scaled down" in note for note in report.notes)
    pipeline = SglPipeline.load(tmp_path / "engine", threads=1)
    pixels = pipeline.large.look([noise(80, 70)], QUESTION, 1).pieces[0].pixels
    smaller = type(saved.processor)(
        patch_size=4, merge_size=2, min_pixels=pipeline.large.config.tiling.min_pixels, max_pixels=MAX_PIXELS // 4
    )
    expected = smaller(images=[noise(80, 70)], return_tensors="np")["pixel_values"]
    assert_array_equal(pixels.reshape(expected.shape), expected)
