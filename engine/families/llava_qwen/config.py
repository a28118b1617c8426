"""A published `config.json` of lmms-lab -> ModelConfig. Every quirk of these files ends here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.bounds import shown
from engine.families.ends import read_end_ids
from engine.families.fields import Fields
from engine.families.internvl2.config import Layout, read_language, refuse_quantized
from engine.families.llava_onevision.config import read_canvas
from engine.families.llava_onevision.prompt import PUBLISHED_CODE
from engine.model_config import ModelConfig, PromptConfig, SiglipConfig

ARCHITECTURE = "LlavaQwenForCausalLM"
TOWERS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "image_size": 384,
        "patch_size": 14,
        "hidden_size": 1152,
        # The published code leaves the last of 27 out, and its weights too.
        "num_layers": 26,
        "num_heads": 16,
        "intermediate_size": 4304,
        "norm_eps": 1e-6,
    }
}
"""Vision encoders, of which a `config.json` says no more than the name."""
ADDED = ("<image>", "<video>")
"""Marks in a prompt, for which the published tokenizers have no tokens, but the embedding has rows to spare."""
end_ids = read_end_ids


def read_config(directory: Path, config: Mapping[str, Any]) -> ModelConfig:
    """A published checkpoint's configuration in our terms. Raises CheckpointError."""
    fields = Fields(config, str(directory / "config.json"))
    refuse_quantized(fields)
    fields.only("mm_projector_type", "mlp2x_gelu")
    fields.only("mm_patch_merge_type", "spatial_unpad")
    fields.only("mm_resampler_type", None)
    # The published code takes the last layer that is left, whatever this says.
    fields.only("mm_vision_select_layer", -2, None)
    fields.only("mm_vision_select_feature", "patch", None)
    for name in ("mm_use_im_start_end", "mm_use_im_patch_token", "use_pos_skipping"):
        fields.only(name, False, None)
    fields.only("use_mm_proj", True, None)
    language = read_language(fields, Layout.QWEN2)
    vision = _read_vision(fields, language.hidden_size)
    return ModelConfig(
        family="llava_qwen",
        name=directory.resolve().name,
        language=language,
        vision=vision,
        tiling=read_canvas(fields, "image_aspect_ratio", vision),
        prompt=PromptConfig(PUBLISHED_CODE, added=ADDED),
    )


def _read_vision(fields: Fields, output_size: int) -> SiglipConfig:
    name = fields.text("mm_vision_tower")
    if name not in TOWERS:
        fields.refuse(
            f"mm_vision_tower {shown(name)} is not supported, only {', '.join(TOWERS)}; choose another checkpoint"
        )
    fields.only("mm_hidden_size", TOWERS[name]["hidden_size"])
    return SiglipConfig(**TOWERS[name], output_size=output_size)
