"""`config.json` and the processor's files of a LLaVA-OneVision -> ModelConfig. Every quirk of these files ends here."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from engine.bounds import shown
from engine.families.chat_template import find_template, normal
from engine.families.ends import read_end_ids
from engine.families.fields import Fields, read_fields
from engine.families.internvl2.config import NAMES, Layout, read_language, refuse_quantized
from engine.families.llava_onevision.pictures import MEAN, STD
from engine.families.llava_onevision.prompt import CHAT_TEMPLATES, DEFAULT
from engine.model_config import AnyResolutionConfig, LanguageConfig, ModelConfig, PromptConfig, SiglipConfig

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"
LANGUAGE_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 32768}
VISION_DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3}
"""Of transformers, whose files leave out what is equal to them."""
DEFAULT_RATIO = "anyres_max_9"
ASPECT_RATIO = re.compile(r"anyres_max_(\d{1,3})")
MOST_GRIDS = 1024
end_ids = read_end_ids


def read_config(directory: Path, config: Mapping[str, Any]) -> ModelConfig:
    """A saved checkpoint's configuration in our terms. Raises CheckpointError."""
    fields = Fields(config, str(directory / "config.json"))
    refuse_quantized(fields)
    fields.only("vision_feature_layer", -1, None)
    fields.only("vision_feature_select_strategy", "full", None)
    fields.only("projector_hidden_act", "gelu", None)
    fields.only("multimodal_projector_bias", True, None)
    template = find_template(directory, {normal(text): name for name, text in CHAT_TEMPLATES.items()})
    language = _read_language(fields)
    vision = _read_vision(fields.section("vision_config"), language.hidden_size)
    return ModelConfig(
        family="llava_onevision",
        name=directory.resolve().name,
        language=language,
        vision=vision,
        tiling=_read_pictures(directory, fields, vision),
        prompt=PromptConfig(template or DEFAULT),
    )


def _read_language(fields: Fields) -> LanguageConfig:
    section = fields.section("text_config")
    section.only("model_type", "qwen2")
    section = Fields(LANGUAGE_DEFAULTS | {**section.values}, section.place)
    language = read_language(section, Layout.QWEN2)
    # Whichever says so, as in the published code.
    is_tied = fields.has("tie_word_embeddings") and fields.boolean("tie_word_embeddings")
    return replace(language, tie_word_embeddings=language.tie_word_embeddings or is_tied)


def _read_vision(vision: Fields, output_size: int) -> SiglipConfig:
    vision.only("model_type", "siglip_vision_model")
    vision = Fields(VISION_DEFAULTS | {**vision.values}, vision.place)
    vision.only("hidden_act", "gelu_pytorch_tanh")
    vision.only("num_channels", 3)
    with vision.named(**NAMES, norm_eps="layer_norm_eps"):
        return SiglipConfig(
            image_size=vision.side("image_size"),
            patch_size=vision.side("patch_size"),
            hidden_size=vision.integer("hidden_size"),
            num_layers=vision.integer("num_hidden_layers"),
            num_heads=vision.integer("num_attention_heads"),
            intermediate_size=vision.integer("intermediate_size"),
            norm_eps=vision.number("layer_norm_eps"),
            output_size=output_size,
        )


def _read_pictures(directory: Path, fields: Fields, vision: SiglipConfig) -> AnyResolutionConfig:
    """Of the model, and the processor's files where they say it again. Newer versions keep the image processor inside
    `processor_config.json`.
    """
    canvas = read_canvas(fields, "vision_aspect_ratio", vision)
    processor = read_fields(directory / "processor_config.json")
    processor.only("num_image_tokens", vision.tokens_per_tile(), None)
    processor.only("vision_feature_select_strategy", "full", None)
    processor.only("vision_aspect_ratio", fields.values.get("vision_aspect_ratio") or DEFAULT_RATIO, None)
    image = read_fields(directory / "preprocessor_config.json")
    if processor.has("image_processor"):
        image = processor.section("image_processor")
    image.only("size", {"height": vision.image_size, "width": vision.image_size}, None)
    image.only("image_mean", MEAN, None)
    image.only("image_std", STD, None)
    image.only("resample", Resampling.BICUBIC.value, None)
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"):
        image.only(name, True, None)
    image.only("image_grid_pinpoints", fields.values.get("image_grid_pinpoints"), None)
    return canvas


def read_canvas(fields: Fields, name: str, vision: SiglipConfig) -> AnyResolutionConfig:
    """Of a model; name: of the field that says how many tiles a canvas may have. Raises CheckpointError."""
    ratio = fields.text(name) if fields.has(name) else DEFAULT_RATIO
    found = ASPECT_RATIO.fullmatch(ratio)
    if found is None:
        fields.refuse(f"{name} {shown(ratio)} is not supported, only anyres_max_N; choose another checkpoint")
    grids = _grids(fields, fields.values.get("image_grid_pinpoints"), vision.image_size)
    with fields.named(grids="image_grid_pinpoints", max_tiles=name):
        return AnyResolutionConfig(grids, int(found[1]))


def _grids(fields: Fields, pinpoints: Any, side: int) -> tuple[tuple[int, int], ...]:
    """Height and width in pixels, a pair each, -> rows and columns of tiles."""
    if not isinstance(pinpoints, list) or not 0 < len(pinpoints) <= MOST_GRIDS:
        fields.refuse(f"image_grid_pinpoints {shown(pinpoints)} is no list of sizes; download config.json again")
    for pair in pinpoints:
        if not isinstance(pair, list) or len(pair) != 2 or any(type(size) is not int or size % side for size in pair):
            fields.refuse(
                f"image_grid_pinpoints holds {shown(pair)}, which is no height and width in multiples of the vision "
                f"encoder's {side} pixels; choose another checkpoint"
            )
    return tuple((height // side, width // side) for height, width in pinpoints)
