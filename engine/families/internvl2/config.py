"""A published InternVL2 `config.json` -> ModelConfig. Every quirk of these files ends here."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.bounds import shown
from engine.build_flags import BuildFlag
from engine.families.fields import Fields
from engine.families.internvl2.prompt import TEMPLATES
from engine.families.internvl2.rope import read_rope
from engine.model_config import InternVitConfig, LanguageConfig, ModelConfig, Norm, PromptConfig, TilingConfig

ARCHITECTURE = "InternVLChatModel"
NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "original_max_positions": "original_max_position_embeddings",
    "theta": "rope_theta",
}
"""Our names of fields -> those of a `config.json`."""


class Layout(StrEnum):
    """Architecture of the language model."""

    QWEN2 = "Qwen2ForCausalLM"
    QWEN3 = "Qwen3ForCausalLM"
    INTERNLM2 = "InternLM2ForCausalLM"
    PHI3 = "Phi3ForCausalLM"
    LLAMA = "LlamaForCausalLM"


def read_config(directory: Path, config: Mapping[str, Any]) -> ModelConfig:
    """A published checkpoint's configuration in our terms. Raises CheckpointError."""
    fields = Fields(config, str(directory / "config.json"))
    fields.only("ps_version", "v2")
    fields.only("select_layer", -1)
    fields.only("pad2square", False, None)
    for adapter in ("use_backbone_lora", "use_llm_lora"):
        if fields.values.get(adapter) not in (0, None):
            fields.refuse(
                f"{adapter} {shown(fields.values[adapter])} is a LoRA adapter beside the weights, which is not applied "
                "here; merge it into the model and save that"
            )
    refuse_quantized(fields)
    fields.only("flash_relative_threshold", None)  # InternVL3.5-Flash drops visual tokens by itself
    llm = fields.section("llm_config")
    language = read_language(llm, Layout(llm.only("architectures", *([layout.value] for layout in Layout))[0]))
    vision = read_vision(fields, language.hidden_size)
    # The published code would interpolate the position embedding here.
    fields.only("force_image_size", vision.image_size, None)
    return ModelConfig(
        family="internvl2",
        name=directory.resolve().name,
        language=language,
        vision=vision,
        tiling=_read_tiling(fields),
        prompt=_read_prompt(fields),
    )


def end_ids(directory: Path) -> tuple[int, ...]:
    """None but the template's: the published `chat` takes its separator, whatever `generation_config.json` says."""
    return ()


def read_language(language: Fields, layout: Layout, has_sections: bool = False) -> LanguageConfig:
    """The section of the language model, which is of this layout. Raises CheckpointError.

    has_sections: its positions may have more numbers than one.
    """
    language.only("hidden_act", "silu")
    refuse_quantized(language)
    language.only("attention_bias", False, None)
    language.only("mlp_bias", False, None)
    if layout is Layout.INTERNLM2:
        language.only("bias", False)
    hidden_size, num_heads = language.integer("hidden_size"), language.integer("num_attention_heads")
    if not language.has("head_dim") and hidden_size % num_heads:
        language.refuse(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}; "
            "download the published config.json again"
        )
    head_dim = language.integer("head_dim") if language.has("head_dim") else hidden_size // num_heads
    with language.named(**NAMES):
        rope = read_rope(language, head_dim, has_sections)
        _refuse_sliding_window(language, layout, rope.max_positions)
        return LanguageConfig(
            hidden_size=hidden_size,
            num_layers=language.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=language.integer("num_key_value_heads"),
            head_dim=head_dim,
            intermediate_size=language.integer("intermediate_size"),
            vocab_size=language.integer("vocab_size"),
            norm_eps=language.number("rms_norm_eps"),
            rope=rope,
            qkv_bias=layout is Layout.QWEN2,
            qk_norm=layout is Layout.QWEN3,
            tie_word_embeddings=language.has("tie_word_embeddings") and language.boolean("tie_word_embeddings"),
        )


def refuse_quantized(fields: Fields) -> None:
    """Raises CheckpointError for weights that are quantized already."""
    if fields.has("quantization_config"):
        fields.refuse(
            f"quantization_config {shown(fields.values['quantization_config'])} says that the weights are quantized "
            f"already; give the checkpoint that they were made from, and choose a {BuildFlag.PRECISION}"
        )


def _refuse_sliding_window(language: Fields, layout: Layout, max_positions: int) -> None:
    """A window that some position would feel. Qwen uses its window only when told to; some layouts have none."""
    match layout:
        case Layout.PHI3:
            used = language.has("sliding_window")
        case Layout.QWEN2 | Layout.QWEN3:
            used = language.has("use_sliding_window") and language.boolean("use_sliding_window")
        case Layout.INTERNLM2 | Layout.LLAMA:
            used = False
    if used and language.integer("sliding_window") < max_positions:
        language.refuse(
            f"sliding_window {language.integer('sliding_window')} is shorter than max_position_embeddings "
            f"{max_positions}, which is not supported; choose another checkpoint"
        )


def read_vision(
    fields: Fields, output_size: int, qkv_bias: str = "qkv_bias", qk_norm: str = "qk_normalization"
) -> InternVitConfig:
    """`vision_config` and `downsample_ratio`, two fields of which go by these names. Raises CheckpointError."""
    vision = fields.section("vision_config")
    vision.only("architectures", ["InternVisionModel"], ["InternVLVisionModel"], None)
    vision.only("hidden_act", "gelu")
    vision.only("use_moe", False, None)
    vision.only("num_channels", 3, None)
    vision.only("norm_type", *(str(norm) for norm in Norm))
    with vision.named(**NAMES):
        return InternVitConfig(
            image_size=vision.side("image_size"),
            patch_size=vision.side("patch_size"),
            hidden_size=vision.integer("hidden_size"),
            num_layers=vision.integer("num_hidden_layers"),
            num_heads=vision.integer("num_attention_heads"),
            intermediate_size=vision.integer("intermediate_size"),
            norm=Norm(vision.text("norm_type")),
            norm_eps=vision.number("layer_norm_eps"),
            qkv_bias=vision.boolean(qkv_bias),
            qk_norm=vision.boolean(qk_norm),
            downsample_ratio=fields.number("downsample_ratio"),
            output_size=output_size,
        )


def _read_tiling(fields: Fields) -> TilingConfig:
    thumbnail = fields.boolean("use_thumbnail")
    if not fields.boolean("dynamic_image_size"):
        return TilingConfig(min_tiles=1, max_tiles=1, thumbnail=thumbnail)
    with fields.named(min_tiles="min_dynamic_patch", max_tiles="max_dynamic_patch"):
        return TilingConfig(fields.integer("min_dynamic_patch"), fields.integer("max_dynamic_patch"), thumbnail)


def _read_prompt(fields: Fields) -> PromptConfig:
    template = fields.text("template")
    fields.only("template", *TEMPLATES)
    return PromptConfig(template, fields.text("system_message") if fields.has("system_message") else None)
