"""Files of strangers that ask for more than any model has: one sentence, before memory or time is spent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.build.read_role import read_ends, settle_pictures
from engine.config import BuildConfig
from engine.errors import CheckpointError, EngineError, ImageError, RequestError
from engine.families import Turn, by_name, published, read_model
from engine.families.llava_onevision.pictures import cut, sampled_lines
from engine.families.qwen2_vl.config import CHAT_TEMPLATE
from engine.model_config import AnyResolutionConfig, ModelConfig, NativeSizeConfig
from engine.runtime.tokenizer import Tokenizer
from tools.fuzz.checkpoint_files import LAYOUTS

QWEN, WINDOWED, LLAVA = "Qwen2-VL-2B", "Qwen2.5-VL-3B", "LLaVA-OneVision-0.5B"


def read(name: str, directory: Path, change: dict[str, Any], files: dict[str, Any] | None = None) -> ModelConfig:
    """A published size, of which fields (`section__field`) are others, with these files beside it."""
    config = json.loads((published(name) / "config.json").read_text())
    for path, value in change.items():
        section, _, field = path.rpartition("__")
        (config[section] if section else config)[field] = value
    for file, content in ({"config.json": config} | (files or {})).items():
        (directory / file).write_text(json.dumps(content))
    return read_model(directory)[1]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (QWEN, {"vision_config__patch_size": 10**9}, "1000000000"),
        (QWEN, {"vision_config__spatial_merge_size": 0}, "spatial_merge_size is 0, not a positive integer"),
        (QWEN, {"vision_config__temporal_patch_size": 8192}, "8192 is outside 1..8"),
        (QWEN, {"vision_config__mlp_ratio": 1e308}, r"mlp_ratio 1e\+308 is above 1024"),
        (QWEN, {"vision_config__embed_dim": 10**60, "vision_config__mlp_ratio": 1e300}, "mlp_ratio"),
        (WINDOWED, {"vision_config__window_size": 28 * 8192}, "window_size of 268435456 patches is too large"),
        (WINDOWED, {"vision_config__window_size": -112}, "window_size is -112, not a positive integer"),
        (LLAVA, {"image_grid_pinpoints": [[384 * 64, 384 * 64]]}, "604,127,232 pixels, more than 67,108,864"),
        (LLAVA, {"image_grid_pinpoints": [[384, 384]] * 10**5}, "is no list of sizes"),
        (LLAVA, {"image_grid_pinpoints": ["384x384"]}, "holds '384x384', which is no height and width"),
    ],
)
def test_absurd_sizes_are_refused(tmp_path: Path, name: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as raised:
        read(name, tmp_path, change)
    assert str(tmp_path / "config.json") in str(raised.value) and len(str(raised.value)) < 500


def test_pictures_of_more_pixels_than_memory_holds_are_refused(tmp_path: Path) -> None:
    files = {"preprocessor_config.json": {"min_pixels": 1 << 30, "max_pixels": 1 << 30}}
    with pytest.raises(CheckpointError, match=r"1073741824 is outside 1\.\.67108864"):
        read(QWEN, tmp_path, {}, files)


def test_layers_that_are_named_twice_count_once(tmp_path: Path) -> None:
    config = read(WINDOWED, tmp_path, {"vision_config__fullatt_block_indexes": [31, 7, 7, 15, 23, *[7] * 10**5]})
    assert config.vision == read(WINDOWED, tmp_path, {}).vision


@pytest.mark.parametrize("blank", [" ", "\n", "{%", "'"])
def test_a_template_without_end_costs_no_time(tmp_path: Path, blank: str) -> None:
    files = {"chat_template.json": {"chat_template": CHAT_TEMPLATE + blank * 10**6}}
    with pytest.raises(CheckpointError, match="holds another chat template"):
        read(QWEN, tmp_path, {}, files)


def test_a_limit_that_a_checkpoint_has_no_picture_for(tmp_path: Path) -> None:
    build = BuildConfig(tmp_path, tmp_path, tmp_path / "engine", max_tiles=3)
    with pytest.raises(EngineError, match="max_tiles 3 is below the 4 tiles of the smallest canvas"):
        settle_pictures(build, AnyResolutionConfig(((2, 2), (2, 3)), 9), tmp_path)
    build = replace(build, max_tiles=None, min_pixels=10_000)
    with pytest.raises(EngineError, match="min_pixels 10000 is above the 9000 pixels"):
        settle_pictures(build, NativeSizeConfig(1000, 9000), tmp_path)


def test_a_picture_of_which_nothing_would_be_left() -> None:
    with pytest.raises(ImageError, match="so thin that no token of its canvas is left"):
        sampled_lines(1, 60_000, (1, 64), 27, 1)


def test_a_long_picture_is_put_on_no_huge_square(tmp_path: Path) -> None:
    config = read(LLAVA, tmp_path, {})
    with pytest.raises(ImageError, match="a square of 65535 pixels is too large"):
        cut(Image.new("RGB", (1, 65_535)), config, is_alone=False)
    assert cut(Image.new("RGB", (10_000, 1)), config, is_alone=False).num_rows() == 730


@pytest.mark.parametrize("mark", ["<image>", "<video>"])
def test_a_system_message_stands_for_no_picture(tmp_path: Path, mark: str) -> None:
    config = read(LLAVA, tmp_path, {})
    with pytest.raises(RequestError, match=f"the system message contains the control token {mark}"):
        by_name("llava_onevision").render_prompt(config, "What?", (3,), system=f"Be kind{mark}")


@pytest.mark.parametrize(
    ("layout", "old", "new", "sentence"),
    [
        ("qwen2_vl", "<|video_pad|>", "<|image_pad|>" * 2, r"finds \d+ tokens <\|image_pad\|> in a prompt of 10"),
        ("qwen2_vl", "<|im_start|>", "<|im_begin|>", r"has no token <\|im_start\|>"),
        ("llava", "<image>", "<picture>", "has no token <image>"),
    ],
)
def test_tokens_that_a_prompt_needs(tmp_path: Path, layout: str, old: str, new: str, sentence: str) -> None:
    for name, content in LAYOUTS[layout]().items():
        is_tokenizer = name.startswith("tokenizer")
        (tmp_path / name).write_bytes(content.replace(old.encode(), new.encode()) if is_tokenizer else content)
    family, config = read_model(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        read_ends(family, config, tmp_path)


def test_an_answer_stands_for_no_picture(tmp_path: Path) -> None:
    """Also where a stranger's tokenizer says that the picture's token is none of its special tokens."""
    content = LAYOUTS["llava"]()["tokenizer.json"].replace(b'"special": true', b'"special": false')
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "config").mkdir()
    tokenizer, config = Tokenizer.load(tmp_path / "tokenizer.json"), read(LLAVA, tmp_path / "config", {})
    history = [Turn("What?", "An <image> and a <video>.")]
    prompt = by_name("llava_onevision").render_prompt(config, "And?", (3,), history)
    assert tokenizer.encode_prompt(prompt).count(tokenizer.token_id("<image>")) == 3
