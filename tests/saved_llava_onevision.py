"""LLaVA-OneVision checkpoints as transformers itself saves them: random weights, processor files, and the oracle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from engine.families.llava_onevision.prompt import CHAT_TEMPLATES, DEFAULT
from tests.eager import randomise
from tools.random_checkpoint import VOCAB_SIZE, write_tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TILE, PATCH = 30, 7
"""Pixels; two of a tile's are not seen."""
GRID = TILE // PATCH
PINPOINTS = [[TILE * rows, TILE * columns] for rows in range(1, 4) for columns in range(1, 4)]
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "image_size": TILE,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "patch_size": PATCH,
    "vision_use_head": False,
}


class StillProcessor(LlavaOnevisionProcessor):
    """Without videos, whose processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


@dataclass(frozen=True)
class Saved:
    """A checkpoint directory and what transformers makes of it."""

    directory: Path
    model: Any
    processor: Any

    def inputs(self, images: list[Any], question: str) -> Any:
        """What the processor makes of one user turn."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # Nested: the pictures of one prompt.
        return self.processor(images=[images] if images else None, text=text, return_tensors="pt")


def save(
    directory: Path,
    max_tiles: int = 9,
    is_tied: bool = False,
    older_names: bool = True,
    template: str = DEFAULT,
    seed: int = 0,
) -> Saved:
    """A whole tiny model, saved in float32."""
    write_tokenizer(directory, SPECIAL_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    torch.manual_seed(seed)
    ratio = f"anyres_max_{max_tiles}"
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT, tie_word_embeddings=is_tied),
        vision_config=SiglipVisionConfig(**VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ratio,
        tie_word_embeddings=is_tied,
        attn_implementation="eager",
    )
    model = LlavaOnevisionForConditionalGeneration(config).float().eval()
    randomise(model)
    model.tie_weights()
    model.save_pretrained(directory, save_original_format=older_names)
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=PINPOINTS,
    )
    image_processor.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATES[template])
    (directory / "processor_config.json").write_text(
        json.dumps({"num_image_tokens": GRID**2, "vision_aspect_ratio": ratio})
    )
    processor = StillProcessor(
        image_processor,
        tokenizer,
        None,
        num_image_tokens=GRID**2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATES[template],
        vision_aspect_ratio=ratio,
    )
    return Saved(directory, model, processor)
