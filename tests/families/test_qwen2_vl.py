"""Qwen2-VL's files, pictures and prompts, against transformers' processor and the published dimensions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.build.language import language_graph
from engine.build.vision import vision_graph
from engine.build.weights import parameters
from engine.dims import Limits
from engine.errors import CheckpointError, ImageError, RequestError
from engine.families import Turn, family_of, published, qwen2_5_vl, qwen2_vl
from engine.families.qwen2_vl.pictures import scaled
from engine.model_config import NativeSizeConfig, QwenVitConfig
from engine.parallel import Shard, check_shards
from tests.families.fixtures import read_published, write_config
from tests.saved_qwen2_vl import VISION, Saved, save

SIZES = ("2B", "7B", "72B")
LIMITS = Limits(max_tokens=64, max_batch=1, max_tiles=1, max_picture_tokens=64)
CONFIG = read_published("Qwen2-VL-2B")
SMALL_LIMITS = NativeSizeConfig(min_pixels=4 * 28 * 28, max_pixels=300 * 28 * 28)


def config_json() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((published("Qwen2-VL-2B") / "config.json").read_text())
    return content


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size: str) -> None:
    """Every dimension is what transformers reads of the same file, and every graph is declared."""
    directory = published(f"Qwen2-VL-{size}")
    theirs = Qwen2VLConfig(**json.loads((directory / "config.json").read_text()))
    config = read_published(f"Qwen2-VL-{size}")
    text, language = theirs.text_config, config.language
    assert (language.hidden_size, language.num_layers, language.num_heads, language.num_kv_heads) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
    )
    assert (language.intermediate_size, language.vocab_size, language.norm_eps, language.head_dim) == (
        text.intermediate_size,
        text.vocab_size,
        text.rms_norm_eps,
        128,
    )
    assert (language.rope.theta, language.rope.sections) == (1e6, (16, 24, 24))
    assert (language.tie_word_embeddings, language.qkv_bias) == (size == "2B", True)
    assert (config.most_tokens(), config.least_tokens()) == (16384, 4)
    assert config.tokens_of(13) == 13 * 256
    weights = dict(parameters(vision_graph(config.vision, LIMITS)))
    sources = qwen2_vl.vision_sources(config, ())
    assert weights.keys() == sources.keys()
    assert weights["patch_embed.weight"].stored == (1280, 3, 2, 14, 14)
    assert weights["merger.mlp.2.weight"].stored == (language.hidden_size, 5120)
    for ranks in (2, 4):
        check_shards(language, Shard(0, ranks), size)
    graph = language_graph(language, LIMITS, shard=Shard(0, 4))
    assert {name for name, _ in parameters(graph)} == qwen2_vl.language_sources(config, ()).keys()


@pytest.mark.parametrize("size", ["3B", "7B", "32B", "72B"])
def test_published_sizes_with_windows(size: str) -> None:
    """Of Qwen2.5-VL, likewise."""
    directory = published(f"Qwen2.5-VL-{size}")
    theirs = Qwen2_5_VLConfig(**json.loads((directory / "config.json").read_text()))
    config = read_published(f"Qwen2.5-VL-{size}")
    text, language, vision = theirs.text_config, config.language, config.vision
    assert (language.hidden_size, language.num_layers, language.num_heads, language.num_kv_heads) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
    )
    assert (language.intermediate_size, language.vocab_size, language.head_dim) == (
        text.intermediate_size,
        text.vocab_size,
        128,
    )
    assert isinstance(vision, QwenVitConfig)
    assert (vision.intermediate_size, vision.window, vision.window_patches()) == (
        theirs.vision_config.intermediate_size,
        4,
        64,
    )
    assert vision.whole_layers == (7, 15, 23, 31)
    weights = dict(parameters(vision_graph(vision, LIMITS)))
    assert weights.keys() == qwen2_5_vl.vision_sources(config, ()).keys()
    assert weights["merger.mlp.2.weight"].stored == (language.hidden_size, 5120)
    check_shards(language, Shard(0, 4), size)
    graph = language_graph(language, LIMITS, shard=Shard(0, 4))
    assert {name for name, _ in parameters(graph)} == qwen2_5_vl.language_sources(config, ()).keys()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"window_size": 100}, "window_size 100 is no multiple of a token's 28 pixels"),
        ({"fullatt_block_indexes": [32]}, r"fullatt_block_indexes \[32\]|fullatt_block_indexes \(32,\)"),
        ({"fullatt_block_indexes": None}, "fullatt_block_indexes None is no list of layers"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported"),
    ],
)
def test_other_windows_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    config = json.loads((published("Qwen2.5-VL-3B") / "config.json").read_text())
    config["vision_config"] |= change
    with pytest.raises(CheckpointError, match=sentence):
        qwen2_5_vl.read_config(write_config(tmp_path, config), config)


def test_a_saved_checkpoint_is_read_like_a_published_one(tmp_path: Path) -> None:
    saved = save(tmp_path)
    family, config_json = family_of(tmp_path)
    config = family.read_config(tmp_path, config_json)
    assert config.family == "qwen2_vl"
    assert (config.language.rope.theta, config.language.rope.sections) == (10000.0, (1, 1, 2))
    assert config.tiling == NativeSizeConfig(saved.processor.size.shortest_edge, saved.processor.size.longest_edge)
    vision = config.vision
    assert (vision.hidden_size, vision.num_layers, vision.intermediate_size) == (48, VISION["depth"], 96)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope_scaling": {"type": "mrope"}}, "type 'mrope' is not supported"),
        ({"rope_scaling": None}, "mrope_section is missing"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "does not add up to 64"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 48]}}, "not a list of 3 positive numbers"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24], "factor": 2}}, "factor is not supported"),
        ({"rope_scaling": {"mrope_section": [16, 24, 24], "mrope_interleaved": True}}, "mrope_interleaved True"),
        ({"vision_config__hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"vision_config__hidden_size": 1280}, "hidden_size 1280 is not supported, only 1536"),
        ({"vision_config__in_chans": 1}, "in_chans 1 is not supported"),
        ({"vision_config__num_heads": 3}, "embed_dim 1280 is not a multiple of four times num_heads 3"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding_window 4096 is shorter"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    config = config_json()
    for name, value in change.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    with pytest.raises(CheckpointError, match=sentence):
        qwen2_vl.read_config(write_config(tmp_path, config), config)


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, (3136, 12845056)),
        ({"preprocessor_config.json": {"min_pixels": 784, "max_pixels": 7840}}, (784, 7840)),
        ({"preprocessor_config.json": {"size": {"min_pixels": 784, "max_pixels": 7840}}}, (784, 7840)),
        ({"processor_config.json": {"image_processor": {"size": {"longest_edge": 7840}}}}, (3136, 7840)),
    ],
)
def test_limits_of_pixels(tmp_path: Path, files: dict[str, Any], limits: tuple[int, int]) -> None:
    directory = write_config(tmp_path, config_json())
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    tiling = qwen2_vl.read_config(directory, config_json()).tiling
    assert (tiling.min_pixels, tiling.max_pixels) == limits


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"min_pixels": 7840, "max_pixels": 784}, "above max_pixels"),
        ({"patch_size": 16}, "patch_size 16 is not supported, only 14"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"do_resize": False}, "do_resize False is not supported"),
    ],
)
def test_another_preprocessing_is_refused(tmp_path: Path, content: dict[str, Any], sentence: str) -> None:
    directory = write_config(tmp_path, config_json())
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=sentence):
        qwen2_vl.read_config(directory, config_json())


def random_sizes(count: int, most: int) -> list[tuple[int, int]]:
    """Width and height, log-uniform, none too thin."""
    rng = np.random.default_rng(count)
    sizes = np.exp(rng.uniform(0, np.log(most), (count, 2))).astype(int)
    return [(int(w), int(h)) for w, h in sizes if max(w, h) <= 200 * min(w, h)]


def test_pixels_are_those_of_the_processor_bit_by_bit() -> None:
    limits = SMALL_LIMITS
    config = read_published("Qwen2-VL-2B")
    config = type(config)(**(vars(config) | {"tiling": limits}))
    processor = Qwen2VLImageProcessorPil(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
    sizes = [*random_sizes(200, 700), (1, 1), (28, 2800), (1344, 336), (14, 14), (42, 42), (13, 43), (70, 42)]
    rng = np.random.default_rng(7)
    for width, height in sizes:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        expected = processor(images=[image], return_tensors="np")
        pieces = qwen2_vl.cut(image, config)
        assert_array_equal(pieces.pixels.reshape(-1, 1176), expected["pixel_values"], strict=True)
        _, rows, columns = expected["image_grid_thw"][0] // (1, 2, 2)
        assert pieces.pixels.shape[:3] == (1, rows, columns)
        assert len(pieces.boxes) == rows * columns <= config.most_tokens()


def test_sizes_are_those_of_the_processor() -> None:
    """On each side of every rounding, and at random."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    limits = CONFIG.tiling
    assert isinstance(limits, NativeSizeConfig)
    edges = [1, 13, 14, 15, 28, 41, 42, 43, 55, 56, 57, 2800, 3583, 3584, 3585, 5000]
    sizes = [(w, h) for w in edges for h in edges if max(w, h) <= 200 * min(w, h)]
    for of in (limits, SMALL_LIMITS):
        for width, height in [*sizes, *random_sizes(2000, 9000)]:
            expected = smart_resize(height, width, 28, of.min_pixels, of.max_pixels)
            assert scaled(height, width, 28, of) == expected
            assert expected[0] * expected[1] // 784 <= of.most_tokens(28)


def test_a_token_is_where_its_box_says() -> None:
    """A white square on black: the tokens that its box covers are the bright ones."""
    pixels = np.zeros((28 * 6, 28 * 9, 3), np.uint8)
    pixels[28 * 2 : 28 * 4, 28 * 5 : 28 * 6] = 255
    pieces = qwen2_vl.cut(Image.fromarray(pixels), CONFIG)
    bright = pieces.pixels.reshape(len(pieces.boxes), -1).mean(axis=1) > 1
    expected = np.array([[5, 2, 6, 3], [5, 3, 6, 4]]) / [9, 6, 9, 6]
    np.testing.assert_allclose(pieces.boxes[bright], expected, atol=1e-6)
    assert pieces.places is not None
    assert_array_equal(pieces.places[bright], [[0, 2, 5], [0, 3, 5]])


@pytest.mark.parametrize("size", [(1, 201), (5000, 24)])
def test_a_picture_that_is_too_thin_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels is more than 200 times as long"):
        qwen2_vl.cut(Image.new("RGB", size), CONFIG)


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def picture(tokens: int) -> str:
    return f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>"


@pytest.mark.parametrize(
    ("question", "tokens", "expected"),
    [
        ("Hi", [], "Hi"),
        ("Hi", [3], f"{picture(3)}Hi"),
        ("Hi", [1, 4], f"{picture(1)}{picture(4)}Hi"),
        ("Is <image> like <image>?", [2, 1], f"Is {picture(2)} like {picture(1)}?"),
    ],
)
def test_prompts(question: str, tokens: list[int], expected: str) -> None:
    prompt = qwen2_vl.render_prompt(CONFIG, question, tokens)
    assert prompt.text == f"{SYSTEM}<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.stop == ("<|im_end|>", "<|endoftext|>")


def test_what_was_said_before() -> None:
    text = qwen2_vl.render_prompt(CONFIG, "And?", [2], [Turn("What?", "A dog.")]).text
    assert text == (
        f"{SYSTEM}<|im_start|>user\n{picture(2)}What?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|video_pad|>"])
def test_a_question_cannot_add_visual_tokens(token: str) -> None:
    with pytest.raises(RequestError, match="contains the control token"):
        qwen2_vl.render_prompt(CONFIG, f"a{token}b", [1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("saved"))


def test_answers_end_where_the_checkpoint_says(saved: Saved, tmp_path: Path) -> None:
    assert qwen2_vl.end_ids(tmp_path) == ()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert qwen2_vl.end_ids(tmp_path) == (2, 0)
