"""LLaVA-OneVision's files as lmms-lab publishes them; pictures and weights are those of `llava_onevision`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.build.read_role import read_ends
from engine.build.tokenizer import read_tokenizer
from engine.errors import CheckpointError
from engine.families import Turn, family_of, llava_qwen
from engine.families.llava_qwen.config import ADDED
from engine.model_config import ModelConfig, SiglipConfig
from tests.families.fixtures import read_published, write_config
from tests.saved_llava_onevision import PUBLISHED, publish, save

SIZES = {
    "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    | {"intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    "72B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    | {"intermediate_size": 29568, "vocab_size": 152064, "tie_word_embeddings": False},
}
GRIDS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


def config_json(size: str = "7B") -> dict[str, Any]:
    pictures = {"image_grid_pinpoints": GRIDS, "mm_hidden_size": 1152}
    published = PUBLISHED | {"max_position_embeddings": 32768, "rope_theta": 1000000.0}
    return published | SIZES[size] | pictures | {"mm_vision_tower": "google/siglip-so400m-patch14-384"}


def read(tmp_path: Path, config: dict[str, Any]) -> ModelConfig:
    directory = write_config(tmp_path / "checkpoint", config)
    family, parsed = family_of(directory)
    assert family is llava_qwen
    return family.read_config(directory, parsed)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(tmp_path: Path, size: str) -> None:
    """The same model as transformers' conversion of it, but for the embedding's rows, which that pads."""
    config, converted = read(tmp_path, config_json(size)), read_published(f"LLaVA-OneVision-{size}")
    assert config.language.vocab_size == SIZES[size]["vocab_size"] <= converted.language.vocab_size
    same = vars(converted.language) | {"vocab_size": config.language.vocab_size}
    assert vars(config.language) == same
    assert (config.vision, config.tiling) == (converted.vision, converted.tiling)
    assert isinstance(config.vision, SiglipConfig)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "mm_vision_tower 'openai/.*, only google/siglip"),
        ({"mm_vision_tower": None}, "mm_vision_tower is missing"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size 1024 is not supported, only 1152"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat'"),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type 'spatial_pool'"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer -1"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"use_pos_skipping": True}, "use_pos_skipping True"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio 'pad' is not supported, only anyres_max_N"),
        ({"image_grid_pinpoints": [[384, 400]]}, r"holds \[384, 400\], which is no height and width in multiples"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "is no list of sizes"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path, config_json() | change)


def test_prompts(tmp_path: Path) -> None:
    """Of the published code: with a system turn, and nothing behind the name of who says nothing."""
    config = read(tmp_path, config_json())
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    prompt = llava_qwen.render_prompt(config, "What?", [2])
    asked = "<|im_start|>user\n<image><image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert (prompt.text, prompt.stop) == (system + asked, ("<|im_end|>",))
    before = llava_qwen.render_prompt(config, "And?", [1], [Turn("What?", "A dog."), Turn("Why?", "")]).text
    assert before == (
        f"{system}<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_marks_get_rows_that_the_embedding_has_to_spare(tmp_path: Path) -> None:
    directory = save(tmp_path / "checkpoint").directory
    with_marks = read_tokenizer(directory)
    publish(directory, "anyres_max_9", is_tied=False)
    tokenizer = read_tokenizer(directory, ADDED)
    assert [tokenizer.token_to_id(mark) for mark in ADDED] == [with_marks.token_to_id(mark) for mark in ADDED]
    assert read_tokenizer(directory).token_to_id("<image>") is None

    config = read(tmp_path / "other", config_json())
    read_ends(llava_qwen, config, directory)
    rows = tokenizer.get_vocab_size() - 1
    full = replace(config, language=replace(config.language, vocab_size=rows))
    with pytest.raises(CheckpointError, match=f"the id {rows}, but its config.json says vocab_size {rows}"):
        read_ends(llava_qwen, full, directory)
