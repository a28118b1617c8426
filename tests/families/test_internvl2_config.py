"""Reading published configurations, and refusing everything that the engine does not compute."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CheckpointError
from engine.families import family_of, internvl2
from engine.model_config import ModelConfig, Norm, RopeScaling
from tests.families.fixtures import SIZES, published, read_size, write_config

# layers, hidden size, heads, KV heads, head dimension of the language model; layers, hidden size of the vision model
DIMENSIONS = {
    "1b": (24, 896, 14, 2, 64, 24, 1024),
    "2b": (24, 2048, 16, 8, 128, 24, 1024),
    "4b": (32, 3072, 32, 32, 96, 24, 1024),
    "8b": (32, 4096, 32, 8, 128, 24, 1024),
    "26b": (48, 6144, 48, 8, 128, 45, 3200),
    "40b": (60, 7168, 56, 8, 128, 45, 3200),
    "76b": (80, 8192, 64, 8, 128, 45, 3200),
}


def changed(size: str, path: str, value: Any) -> dict[str, Any]:
    """A published configuration with the dotted field set, or removed when the value is `...`."""
    config = published(size)
    *sections, name = path.split(".")
    target = config
    for section in sections:
        target = target[section]
    if value is ...:
        del target[name]
    else:
        target[name] = value
    return config


@pytest.mark.parametrize("size", SIZES)
def test_dimensions(size: str) -> None:
    config = read_size(size)
    language, vision = config.language, config.vision
    assert DIMENSIONS[size] == (
        language.num_layers,
        language.hidden_size,
        language.num_heads,
        language.num_kv_heads,
        language.head_dim,
        vision.num_layers,
        vision.hidden_size,
    )
    assert vision.tokens_per_tile() == 256
    assert vision.output_size == language.hidden_size
    assert (config.tiling.min_tiles, config.tiling.max_tiles, config.tiling.thumbnail) == (1, 12, True)
    assert language.qkv_bias == (size == "1b")
    large = size in ("26b", "40b", "76b")
    assert (vision.norm, vision.qk_norm, vision.qkv_bias) == (
        (Norm.RMS, True, False) if large else (Norm.LAYER, False, True)
    )


def test_rope() -> None:
    assert read_size("1b").language.rope.scaling is RopeScaling.NONE
    dynamic = read_size("26b").language.rope
    assert (dynamic.scaling, dynamic.factor, dynamic.max_positions) == (RopeScaling.DYNAMIC_NTK, 3.0, 32768)
    long = read_size("4b").language.rope
    assert (long.scaling, long.original_max_positions, long.max_positions) == (RopeScaling.LONG, 4096, 131072)
    assert len(long.short_factor) == len(long.long_factor) == 48
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    llama3 = internvl2.read_config(Path("x"), changed("76b", "llm_config.rope_scaling", scaling)).language.rope
    assert (llama3.scaling, llama3.factor, llama3.original_max_positions) == (RopeScaling.LLAMA3, 8.0, 8192)


def test_optional_fields() -> None:
    read = internvl2.read_config
    assert read(Path("x"), changed("1b", "system_message", "Be brief.")).prompt.system_message == "Be brief."
    assert read(Path("x"), changed("1b", "dynamic_image_size", False)).tiling.max_tiles == 1
    assert read(Path("x"), changed("1b", "llm_config.head_dim", 32)).language.head_dim == 32
    assert read(Path("x"), changed("1b", "llm_config.tie_word_embeddings", True)).language.tie_word_embeddings
    assert read(Path("x"), changed("1b", "force_image_size", ...)).vision.image_size == 448


@pytest.mark.parametrize(
    ("size", "path", "value"),
    [
        ("2b", "ps_version", "v1"),
        ("2b", "ps_version", ...),
        ("2b", "select_layer", -4),
        ("2b", "pad2square", True),
        ("2b", "use_llm_lora", 16),
        ("2b", "force_image_size", 224),
        ("2b", "downsample_ratio", 0.3),
        ("2b", "template", "vicuna"),
        ("2b", "template", ...),
        ("2b", "min_dynamic_patch", 13),
        ("2b", "quantization_config", {"quant_method": "awq"}),
        ("2b", "flash_relative_threshold", 0.5),
        ("2b", "llm_config", ...),
        ("2b", "llm_config", []),
        ("2b", "llm_config.architectures", ["GPT2LMHeadModel"]),
        ("2b", "llm_config.architectures", "InternLM2ForCausalLM"),
        ("2b", "llm_config.hidden_act", "gelu"),
        ("2b", "llm_config.hidden_size", 2047),
        ("2b", "llm_config.num_key_value_heads", 5),
        ("2b", "llm_config.num_hidden_layers", 0),
        ("2b", "llm_config.num_hidden_layers", True),
        ("2b", "llm_config.num_hidden_layers", 2**63),
        ("2b", "llm_config.num_attention_heads", 1025),
        ("2b", "llm_config.num_key_value_heads", 10**29),
        ("2b", "llm_config.max_position_embeddings", 10**29),
        ("2b", "llm_config.vocab_size", 1 << 25),
        ("2b", "llm_config.rope_scaling.factor", 1e300),
        ("2b", "llm_config.rope_theta", 1e-300),
        ("2b", "max_dynamic_patch", 6000),
        ("2b", "vision_config.image_size", 1 << 20),
        ("2b", "use_backbone_lora", 4),
        ("2b", "llm_config.vocab_size", "92553"),
        ("2b", "llm_config.rms_norm_eps", float("nan")),
        ("2b", "llm_config.rms_norm_eps", 10**400),
        ("2b", "llm_config.head_dim", 127),
        ("2b", "llm_config.bias", True),
        ("2b", "llm_config.bias", ...),
        ("2b", "llm_config.rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("2b", "llm_config.rope_scaling.factor", ...),
        ("2b", "llm_config.rope_scaling.beta_fast", 32),
        ("2b", "llm_config.tie_word_embeddings", "no"),
        ("1b", "llm_config.use_sliding_window", True),
        ("4b", "llm_config.sliding_window", 2047),
        ("4b", "llm_config.original_max_position_embeddings", ...),
        ("4b", "llm_config.rope_scaling.short_factor", [1.0] * 47),
        ("4b", "llm_config.partial_rotary_factor", 0.75),
        ("40b", "llm_config.attention_bias", True),
        ("40b", "llm_config.mlp_bias", True),
        ("26b", "vision_config.hidden_act", "gelu_new"),
        ("26b", "vision_config.norm_type", "batch_norm"),
        ("26b", "vision_config.use_moe", True),
        ("26b", "vision_config.num_attention_heads", 24),
        ("26b", "vision_config.num_channels", 1),
        ("26b", "vision_config.qkv_bias", ...),
        ("26b", "vision_config.patch_size", 15),
    ],
)
def test_refuses(size: str, path: str, value: Any) -> None:
    if path == "llm_config.use_sliding_window":
        config = changed(size, "llm_config.sliding_window", 1024)
        config["llm_config"]["use_sliding_window"] = True
        path = "llm_config.sliding_window"
    else:
        config = changed(size, path, value)
    with pytest.raises(CheckpointError) as error:
        internvl2.read_config(Path("some/checkpoint"), config)
    message = str(error.value)
    assert message.startswith("some/checkpoint/config.json")
    assert "\n" not in message
    assert len(message) < 250
    field = path.rpartition(".")[2]
    assert field in message or path == "llm_config.rope_scaling"


def leaves(config: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{name}.")
    return found


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(data=st.data(), size=st.sampled_from(SIZES), value=JSON | st.just(...))
def test_any_field_gives_a_configuration_or_a_checkpoint_error(data: st.DataObject, size: str, value: Any) -> None:
    path = data.draw(st.sampled_from(leaves(published(size))))
    config = changed(size, path, value)
    before = copy.deepcopy(config)
    with suppress(CheckpointError):
        assert isinstance(internvl2.read_config(Path("x"), config), ModelConfig)
    assert repr(config) == repr(before)


def test_family_of_finds_it(tmp_path: Path) -> None:
    family, config = family_of(write_config(tmp_path / "InternVL2-2B", published("2b")))
    assert family.read_config(tmp_path / "InternVL2-2B", config).name == "InternVL2-2B"
    for config in ({"architectures": "InternVLChatModel"}, {"architectures": ["InternVLFlash"]}, {}):
        with pytest.raises(CheckpointError, match="known: InternVLChatModel, InternVLForConditionalGeneration"):
            family_of(write_config(tmp_path / "another", config))


def test_what_later_versions_changed() -> None:
    """InternVL2.5 and 3 around Qwen2.5, as InternVL3-1B has it; InternVL3.5 around Qwen3."""
    config = changed("1b", "template", "internvl2_5") | {"system_message": None, "image_fold": None}
    config["llm_config"] |= {
        "max_window_layers": 70,
        "moe_config": None,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "sliding_window": None,
        "vocab_size": 151674,
    }
    config["vision_config"] |= {"initializer_factor": 0.1, "use_moe": False}
    read = internvl2.read_config(Path("x"), config)
    rope = read.language.rope
    assert (rope.scaling, rope.factor, rope.theta, rope.max_positions) == (RopeScaling.DYNAMIC_NTK, 2.0, 1e6, 32768)
    assert (read.prompt.template, read.prompt.system_message) == ("internvl2_5", None)
    assert (read.language.qkv_bias, read.language.qk_norm) == (True, False)
    config["llm_config"] |= {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
    language = internvl2.read_config(Path("x"), config).language
    assert (language.qkv_bias, language.qk_norm, language.head_dim) == (False, True, 128)


@pytest.mark.parametrize("architecture", ["InternLM3ForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_other_language_models_are_refused(architecture: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{architecture}.* is not supported, only .*Qwen2ForCausalLM"):
        internvl2.read_config(Path("x"), changed("2b", "llm_config.architectures", [architecture]))
