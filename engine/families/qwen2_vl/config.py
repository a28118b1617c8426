"""`config.json` and the processor's files of a Qwen2-VL -> ModelConfig. Every quirk of these files ends here."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from engine.bounds import shown
from engine.families.chat_template import find_template, normal
from engine.families.ends import read_end_ids
from engine.families.fields import Fields, read_fields
from engine.families.internvl2.config import Layout, read_language, refuse_quantized
from engine.families.qwen2_vl.pictures import MEAN, STD
from engine.model_config import LanguageConfig, ModelConfig, NativeSizeConfig, PromptConfig, QwenVitConfig

ARCHITECTURE = "Qwen2VLForConditionalGeneration"
PUBLISHED_PIXELS = NativeSizeConfig(min_pixels=3136, max_pixels=12845056)
"""Of the published `preprocessor_config.json`, where there is none."""
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == "
    "'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
"""As published."""
VISION_NAMES = {"num_layers": "depth", "hidden_size": "embed_dim", "merged": "spatial_merge_size"}
"""Our names of fields -> those of `vision_config`."""
MOST_RATIO = 1024
end_ids = read_end_ids


def read_config(directory: Path, config: Mapping[str, Any]) -> ModelConfig:
    """A checkpoint's configuration in our terms. Raises CheckpointError."""
    return read_model(directory, config, "qwen2_vl", _read_vision)


def read_model(
    directory: Path, config: Mapping[str, Any], family: str, read_vision: Callable[[Fields, int], QwenVitConfig]
) -> ModelConfig:
    """Of a family with these files. read_vision: its `vision_config`, and the language model's hidden size."""
    fields = Fields(config, str(directory / "config.json"))
    refuse_quantized(fields)
    find_template(directory, {normal(CHAT_TEMPLATE): "qwen2_vl"})
    language = _read_language(fields)
    vision = read_vision(fields.section("vision_config"), language.hidden_size)
    return ModelConfig(
        family=family,
        name=directory.resolve().name,
        language=language,
        vision=vision,
        tiling=_read_pictures(directory, vision),
        prompt=PromptConfig("qwen2_vl"),
    )


def _read_language(fields: Fields) -> LanguageConfig:
    """Its fields stand beside those of the whole model, or, as newer files have them, in a section."""
    section = fields.section("text_config") if fields.has("text_config") else fields
    language = read_language(section, Layout.QWEN2, has_sections=True)
    if not language.rope.sections:
        section.refuse("mrope_section is missing; download the published config.json again")
    if fields.has("tie_word_embeddings"):
        # The field of the whole model counts where there is one.
        language = replace(language, tie_word_embeddings=fields.boolean("tie_word_embeddings"))
    return language


def _read_vision(vision: Fields, output_size: int) -> QwenVitConfig:
    vision.only("hidden_act", "quick_gelu", None)
    vision.only("hidden_size", output_size)
    for name in ("in_chans", "in_channels"):
        vision.only(name, 3, None)
    patch_size = vision.side("patch_size")
    vision.only("spatial_patch_size", patch_size, None)
    ratio = vision.number("mlp_ratio")
    if not ratio <= MOST_RATIO:
        vision.refuse(f"mlp_ratio {shown(ratio)} is above {MOST_RATIO}; download the published config.json again")
    with vision.named(**VISION_NAMES):
        return QwenVitConfig(
            patch_size=patch_size,
            frames=vision.integer("temporal_patch_size"),
            merged=vision.integer("spatial_merge_size"),
            hidden_size=vision.integer("embed_dim"),
            num_layers=vision.integer("depth"),
            num_heads=vision.integer("num_heads"),
            intermediate_size=int(vision.integer("embed_dim") * ratio),
            output_size=output_size,
        )


def _read_pictures(directory: Path, vision: QwenVitConfig) -> NativeSizeConfig:
    """Of the processor's files. Newer versions keep the image processor inside `processor_config.json`."""
    processor = read_fields(directory / "processor_config.json")
    image = read_fields(directory / "preprocessor_config.json")
    if processor.has("image_processor"):
        image = processor.section("image_processor")
    image.only("image_mean", MEAN, None)
    image.only("image_std", STD, None)
    image.only("resample", Resampling.BICUBIC.value, None)
    image.only("patch_size", vision.patch_size, None)
    image.only("temporal_patch_size", vision.frames, None)
    image.only("merge_size", vision.merged, None)
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        image.only(name, True, None)
    limits = {"min_pixels": ("min_pixels", "shortest_edge"), "max_pixels": ("max_pixels", "longest_edge")}
    found = {}
    for ours, (older, newer) in limits.items():
        # Newer versions say it inside of `size`, some files twice.
        size = image.section("size") if image.has("size") else Fields({}, image.place)
        places = [(image, older), (size, older), (size, newer)]
        found[ours] = next((place.integer(name) for place, name in places if place.has(name)), None)
    with image.named(min_pixels="min_pixels (shortest_edge)", max_pixels="max_pixels (longest_edge)"):
        return replace(PUBLISHED_PIXELS, **{name: pixels for name, pixels in found.items() if pixels is not None})
