"""Questions about clips, of every family: against transformers' eager models, features, positions and logits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig
from engine.runtime.clips import ClipFrames
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens
from engine.runtime.vision import pack
from tests import clips as eager
from tests import saved_internvl, saved_llava_onevision, saved_qwen2_vl
from tests.clips import Inputs, clip, noise
from tests.prefilled import Prefilled
from tests.tolerance import TOLERANCE

QUESTION, NEW_TOKENS, WIDTH = "How many red squares are there?", 8, 48
Save, Oracle = Callable[[Path], Any], Callable[..., Inputs]
FAMILIES: dict[str, tuple[Save, Oracle]] = {
    "internvl": (lambda directory: saved_internvl.save(directory, "qwen3"), eager.internvl),
    "qwen2_vl": (saved_qwen2_vl.save, eager.qwen),
    "qwen2_5_vl": (lambda directory: saved_qwen2_vl.save(directory, has_windows=True), eager.qwen),
    "llava_onevision": (saved_llava_onevision.save, eager.llava),
}
MEDIA: dict[str, tuple[list[Image.Image], list[ClipFrames]]] = {
    "a clip": ([], [clip(4)]),
    "an odd one": ([], [clip(5, 33, 61)]),
    "one frame": ([], [clip(1)]),
    "with a picture": ([noise(60, 20, 7)], [clip(3)]),
    "two clips": ([], [clip(3), clip(3, 24, 40, first=9)]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def saved(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return FAMILIES[family][0](tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def built(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("built") / "engine"
    pair = BuildConfig(saved.directory, saved.directory, out, max_tokens=512, max_batch=4, prune_layers=(2,))
    build_pair(pair)
    return SglPipeline.load(out, threads=1)


def read(
    model: VisionLanguageModel, images: Sequence[Image.Image], videos: Sequence[ClipFrames], text: str = QUESTION
) -> tuple[Seen, PromptTokens]:
    seen = model.look(images, text, NEW_TOKENS, videos=videos)
    features = [pack(model.vision.encode(part.pixels), part.packing) for part in seen.pieces]
    return seen, seen.prompt(features, model.config.vision.output_size)


@pytest.mark.parametrize("media", MEDIA)
@torch.no_grad()
def test_prompt_features_positions_and_logits(saved: Any, built: SglPipeline, family: str, media: str) -> None:
    images, videos = MEDIA[media]
    theirs = FAMILIES[family][1](saved, images, videos, QUESTION)
    _, prompt = read(built.large, images, videos)
    assert_array_equal(prompt.ids, theirs.model["input_ids"][0].numpy())
    assert_allclose(prompt.features, theirs.features, **TOLERANCE["fp32"])
    if theirs.positions is not None:
        assert_array_equal(prompt.positions(), theirs.positions)
    one = Prefilled(built.large.language, prompt, NEW_TOKENS, prune_layers=(2,), chunk=13)
    one.close()
    assert_allclose(one.logits, saved.model(**theirs.model).logits[0, -1].numpy(), **TOLERANCE["fp32"])
