"""Qwen2-VL and Qwen2.5-VL as transformers itself saves them: random weights, processor files, and the oracle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.eager import randomise
from tools.random_checkpoint import VOCAB_SIZE, write_tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH, MERGED = 4, 2
SIDE = PATCH * MERGED
"""Pixels of a token's side."""
MIN_PIXELS, MAX_PIXELS = 4 * SIDE**2, 60 * SIDE**2
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vocab_size": VOCAB_SIZE,
}
VISION: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 48,
    "hidden_size": 48,
    "mlp_ratio": 2,
    "num_heads": 3,
    "patch_size": PATCH,
    "spatial_merge_size": MERGED,
    "temporal_patch_size": 2,
}
WINDOWED: dict[str, Any] = {
    "depth": 3,
    "fullatt_block_indexes": [1],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 3,
    "out_hidden_size": 48,
    "patch_size": PATCH,
    "spatial_merge_size": MERGED,
    "temporal_patch_size": 2,
    "window_size": 3 * SIDE,
}
"""Of Qwen2.5-VL; windows of three by three tokens."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint directory and what transformers makes of it."""

    directory: Path
    model: Any
    processor: Any
    tokenizer: Any

    def inputs(self, images: list[Any], question: str) -> dict[str, torch.Tensor]:
        """What its processor makes of one user turn, as the published chat template says."""
        pixels = self.processor(images=images, return_tensors="pt") if images else {}
        grids = pixels.get("image_grid_thw", torch.empty(0, 3, dtype=torch.long))
        pictures = "".join(
            f"<|vision_start|>{'<|image_pad|>' * int(grid.prod() // MERGED**2)}<|vision_end|>" for grid in grids
        )
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        if images:
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        self.model.model.rope_deltas = None
        return inputs


def save(
    directory: Path,
    is_tied: bool = False,
    published_names: bool = True,
    has_windows: bool = False,
    seed: int = 0,
    **text: Any,
) -> Saved:
    """A whole tiny model, saved in float32. has_windows: it is a Qwen2.5-VL. text: fields of its language model that
    differ from `TEXT`.
    """
    write_tokenizer(directory, SPECIAL_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    torch.manual_seed(seed)
    make, kind = (
        (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)
        if has_windows
        else (
            Qwen2VLConfig,
            Qwen2VLForConditionalGeneration,
        )
    )
    config = make(
        text_config=json.loads(json.dumps(TEXT | text)),
        vision_config=dict(WINDOWED if has_windows else VISION),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=is_tied,
        attn_implementation="eager",
    )
    model = kind(config).float().eval()
    randomise(model)
    model.tie_weights()
    model.save_pretrained(directory, save_original_format=published_names)
    limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGED, **limits)
    processor.save_pretrained(directory)
    return Saved(directory, model, processor, tokenizer)
