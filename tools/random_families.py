"""Configurations of tiny models: a published one of each family with other sizes, for a small and a large model."""

import json
from pathlib import Path
from typing import Any

from engine.families import published
from tools.random_checkpoint import VOCAB_SIZE, write_config
from tools.random_weights import write_weights

ROLES = ("small", "large")
LANGUAGE: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_hidden_layers": 4},
    "large": {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8, "num_hidden_layers": 10},
}
KEYS = {"num_key_value_heads": 2, "vocab_size": VOCAB_SIZE}
SECTIONS = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
VISION = {"small": (32, 2, 2), "large": (48, 3, 3)}
"""Width, heads and layers."""
TILE = 84
GRIDS = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
"""Pixels of LLaVA-OneVision's tile, and its canvases."""
SIZES = {"qwen2_vl": "Qwen2-VL-2B", "qwen2_5_vl": "Qwen2.5-VL-3B", "llava_onevision": "LLaVA-OneVision-0.5B"}
"""Families of this file, and the published size that they are like."""


def tiny_config(family: str, role: str) -> dict[str, Any]:
    """A `config.json`."""
    config: dict[str, Any] = json.loads((published(SIZES[family]) / "config.json").read_text(encoding="utf-8"))
    language, (width, heads, layers) = LANGUAGE[role] | KEYS, VISION[role]
    vision: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width}
    match family:
        case "qwen2_vl":
            vision = {"depth": layers, "embed_dim": width, "num_heads": heads, "mlp_ratio": 2}
            vision |= {"hidden_size": language["hidden_size"]}
            config |= language | SECTIONS
        case "qwen2_5_vl":
            vision |= {"depth": layers, "num_heads": heads, "out_hidden_size": language["hidden_size"]}
            vision |= {"fullatt_block_indexes": [layers - 1]}
            config |= language | SECTIONS
        case "llava_onevision":
            vision |= {"num_hidden_layers": layers, "num_attention_heads": heads, "image_size": TILE}
            config |= {"text_config": config["text_config"] | language, "image_grid_pinpoints": GRIDS}
    return config | {"vision_config": config["vision_config"] | vision}


def write_tiny_pair(directory: Path, family: str, seed: int) -> None:
    """Checkpoints `small` and `large` with their tokenizers."""
    for role in ROLES:
        write_config(directory / role, tiny_config(family, role))
        write_weights(directory / role, lambda fraction: None, seed)
