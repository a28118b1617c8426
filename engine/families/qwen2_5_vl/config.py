"""`config.json` of a Qwen2.5-VL -> ModelConfig: its vision encoder is another one, everything else is Qwen2-VL's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.bounds import shown
from engine.families.ends import read_end_ids
from engine.families.fields import Fields
from engine.families.qwen2_vl.config import read_model
from engine.model_config import ModelConfig, Norm, QwenVitConfig

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
NAMES = {
    "num_layers": "depth",
    "merged": "spatial_merge_size",
    "window": "window_size",
    "whole_layers": "fullatt_block_indexes",
    "steps_per_second": "tokens_per_second",
}
"""Our names of fields -> those of `vision_config`."""
STEPS = 4
"""A second, of transformers, whose files may leave out what is equal to it."""
end_ids = read_end_ids


def read_config(directory: Path, config: Mapping[str, Any]) -> ModelConfig:
    """A checkpoint's configuration in our terms. Raises CheckpointError."""
    return read_model(directory, config, "qwen2_5_vl", _read_vision)


def _read_vision(vision: Fields, output_size: int) -> QwenVitConfig:
    vision.only("hidden_act", "silu", None)
    vision.only("out_hidden_size", output_size)
    for name in ("in_chans", "in_channels"):
        vision.only(name, 3, None)
    patch_size, merged = vision.side("patch_size"), vision.integer("spatial_merge_size")
    vision.only("spatial_patch_size", patch_size, None)
    window, token = vision.integer("window_size"), patch_size * merged
    if window % token:
        vision.refuse(f"window_size {window} is no multiple of a token's {token} pixels; choose another checkpoint")
    whole = vision.values.get("fullatt_block_indexes")
    if not isinstance(whole, list) or any(type(layer) is not int for layer in whole):
        vision.refuse(f"fullatt_block_indexes {shown(whole)} is no list of layers; download config.json again")
    with vision.named(**NAMES):
        return QwenVitConfig(
            patch_size=patch_size,
            frames=vision.integer("temporal_patch_size"),
            merged=merged,
            hidden_size=vision.integer("hidden_size"),
            num_layers=vision.integer("depth"),
            num_heads=vision.integer("num_heads"),
            intermediate_size=vision.integer("intermediate_size"),
            output_size=output_size,
            norm=Norm.RMS,
            is_gated=True,
            window=window // token,
            whole_layers=tuple(sorted(set(whole))),
            steps_per_second=vision.integer("tokens_per_second") if vision.has("tokens_per_second") else STEPS,
        )
