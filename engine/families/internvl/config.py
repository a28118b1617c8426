"""`config.json` and the processor's files of an InternVL that transformers saved -> ModelConfig."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from engine.families.chat_template import find_template
from engine.families.ends import read_end_ids
from engine.families.fields import Fields, read_fields
from engine.families.internvl2.config import Layout, read_language, read_vision, refuse_quantized
from engine.families.internvl2.tiling import MEAN, STD
from engine.model_config import InternVitConfig, LanguageConfig, ModelConfig, PromptConfig, TilingConfig

ARCHITECTURE = "InternVLForConditionalGeneration"
LAYOUTS = {"qwen2": Layout.QWEN2, "qwen3": Layout.QWEN3, "llama": Layout.LLAMA}
"""By `model_type`; InternLM2 is converted to Llama."""
CHAT_TEMPLATE = (
    "{%for message in messages%}{{'<|im_start|>'+message['role']+'\n'}}"
    "{%if message['content'] is string%}{{message['content']}}{%else%}"
    "{%for content in message['content']%}{%if content['type']=='image'%}{{'<IMG_CONTEXT>\n'}}"
    "{%elif content['type']=='text'%}{{content['text']}}{%endif%}{%endfor%}{%endif%}{{'<|im_end|>\n'}}"
    "{%endfor%}{%if add_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}"
)
"""Of transformers' conversion, without blanks around tags and operators."""
TEMPLATES = {CHAT_TEMPLATE: "internvl"}
VISION_NORM_EPS = 1e-6
"""Of the norms of queries and keys, whatever `layer_norm_eps` says."""


end_ids = read_end_ids


def read_config(directory: Path, config: Mapping[str, Any]) -> ModelConfig:
    """A saved checkpoint's configuration in our terms. Raises CheckpointError."""
    fields = Fields(config, str(directory / "config.json"))
    fields.only("vision_feature_layer", -1, None)
    fields.only("vision_feature_select_strategy", "default", None)
    fields.only("projector_hidden_act", "gelu", None)
    refuse_quantized(fields)
    find_template(directory, TEMPLATES)
    language = _read_language(fields)
    vision = _read_vision(fields, language.hidden_size)
    return ModelConfig(
        family="internvl",
        name=directory.resolve().name,
        language=language,
        vision=vision,
        tiling=_read_tiling(directory, vision),
        prompt=PromptConfig("internvl"),
    )


def _read_language(fields: Fields) -> LanguageConfig:
    section = fields.section("text_config")
    language = read_language(section, LAYOUTS[section.only("model_type", *LAYOUTS)])
    if not fields.has("tie_word_embeddings"):
        return language
    # The field of the whole model counts where there is one.
    return replace(language, tie_word_embeddings=fields.boolean("tie_word_embeddings"))


def _read_vision(fields: Fields, output_size: int) -> InternVitConfig:
    section = fields.section("vision_config")
    section.only("use_absolute_position_embeddings", True, None)
    section.only("use_mean_pooling", True, None)  # else a norm follows the last layer
    vision = read_vision(fields, output_size, qkv_bias="attention_bias", qk_norm="use_qk_norm")
    if vision.qk_norm:
        section.only("layer_norm_eps", VISION_NORM_EPS)
    return vision


def _read_tiling(directory: Path, vision: InternVitConfig) -> TilingConfig:
    """Of the processor's files, or of transformers' defaults without them; the thumbnail is always there.

    Newer versions keep the image processor inside `processor_config.json`.
    """
    processor = read_fields(directory / "processor_config.json")
    processor.only("image_seq_length", vision.tokens_per_tile(), None)
    image = read_fields(directory / "preprocessor_config.json")
    if processor.has("image_processor"):
        image = processor.section("image_processor")
    size = {"height": vision.image_size, "width": vision.image_size}
    image.only("size", size, None)
    image.only("image_mean", MEAN, None)
    image.only("image_std", STD, None)
    image.only("resample", Resampling.BICUBIC.value, None)
    with image.named(min_tiles="min_patches", max_tiles="max_patches"):
        return TilingConfig(
            image.integer("min_patches") if image.has("min_patches") else TilingConfig.min_tiles,
            image.integer("max_patches") if image.has("max_patches") else TilingConfig.max_tiles,
        )
