"""Checkpoints that transformers saved: built whole and asked, against its own processor and eager model."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors import safe_open

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from tests.prefilled import Prefilled
from tests.saved_internvl import LARGE_VISION, VISION, Saved, save
from tests.tolerance import TOLERANCE

QUESTION = "How many red squares are there?"
NEW_TOKENS = 6
CASES = {
    "qwen2": ("qwen2", VISION, True),
    "qwen2, names of the modules": ("qwen2", LARGE_VISION, False),
    "llama, tied": ("llama", LARGE_VISION, True),
    "llama, tied, names of the modules": ("llama", VISION, False),
    "qwen3": ("qwen3", VISION, True),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    text, vision, older_names = CASES[request.param]
    return save(tmp_path_factory.mktemp("saved"), text, vision, older_names)


@pytest.fixture(scope="module")
def built(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("built") / "engine"
    build_pair(BuildConfig(saved.directory, saved.directory, out, max_tokens=256, max_batch=1))
    return SglPipeline.load(out, threads=1)


def test_names_are_what_the_case_says(saved: Saved, request: pytest.FixtureRequest) -> None:
    with safe_open(saved.directory / "model.safetensors", "np") as file:
        beginnings = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    older = {"language_model", "vision_tower", "multi_modal_projector"}
    assert (beginnings == older) == CASES[request.node.callspec.params["saved"]][2]


@pytest.mark.parametrize("pictures", [0, 1, 2])
@torch.no_grad()
def test_prompt_pixels_features_and_logits(
    saved: Saved, built: SglPipeline, picture: Image.Image, pictures: int
) -> None:
    images = [picture, picture.rotate(90, expand=True)][:pictures]
    inputs = saved.inputs(images, QUESTION)
    model = built.large
    seen = model.look(images, QUESTION, NEW_TOKENS)
    assert_array_equal(seen.encoded.ids, inputs["input_ids"][0].numpy())
    prompt = seen.prompt([model.vision.encode(part.pixels) for part in seen.pieces], 48)
    if images:
        pixels = np.concatenate([part.pixels for part in seen.pieces])
        assert_allclose(pixels, inputs["pixel_values"].numpy(), rtol=0, atol=2e-6)
        expected = saved.model.get_image_features(inputs["pixel_values"]).pooler_output
        assert_allclose(prompt.features, expected.reshape(-1, 48).numpy(), **TOLERANCE["fp32"])
    one = Prefilled(model.language, prompt, NEW_TOKENS, prune_layers=built.manifest.models["large"].prune_layers)
    one.close()
    assert_allclose(one.logits, saved.model(**inputs).logits[0, -1].numpy(), **TOLERANCE["fp32"])


@torch.no_grad()
def test_answers_are_those_of_generate(saved: Saved, built: SglPipeline, picture: Image.Image) -> None:
    answer = built.answer(
        picture,
        QUESTION,
        guidance=GuidanceConfig(enabled=False),
        exit=ExitConfig(enabled=False),
        sampling=SamplingConfig(max_new_tokens=NEW_TOKENS),
    )
    generated = saved.model.generate(
        **saved.inputs([picture], QUESTION),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=saved.processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    tokens = generated.sequences[0, -len(generated.scores) :].tolist()
    assert list(answer.token_ids) == tokens
    probabilities = [scores[0].softmax(-1).max().item() for scores in generated.scores]
    assert_allclose(answer.probabilities, probabilities, **TOLERANCE["fp32"])
