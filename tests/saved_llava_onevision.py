"""LLaVA-OneVision checkpoints as transformers itself saves them, and the same in lmms-lab's layout: random weights,
processor files, and the oracle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
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
    is_published: bool = False
    """In lmms-lab's layout."""

    def prompt(self, images: list[Any], question: str) -> str:
        """One user turn."""
        if self.is_published:
            system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            asked = "<image>\n" * len(images) + question
            return f"{system}<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def inputs(self, images: list[Any], question: str) -> Any:
        """What the processor makes of one user turn."""
        text = self.prompt(images, question)
        # Nested: the pictures of one prompt.
        return self.processor(images=[images] if images else None, text=text, return_tensors="pt")


def save(
    directory: Path,
    max_tiles: int = 9,
    is_tied: bool = False,
    older_names: bool = True,
    template: str = DEFAULT,
    seed: int = 0,
    is_published: bool = False,
) -> Saved:
    """A whole tiny model, saved in float32. is_published: as lmms-lab does."""
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
    if is_published:
        publish(directory, ratio, is_tied)
    return Saved(directory, model, processor, is_published)


TOWER = "tiny-siglip"
"""Name of the vision encoder here, and what it stands for."""
TOWER_SIZES: dict[str, Any] = {
    "image_size": TILE,
    "patch_size": PATCH,
    "hidden_size": VISION["hidden_size"],
    "num_layers": VISION["num_hidden_layers"],
    "num_heads": VISION["num_attention_heads"],
    "intermediate_size": VISION["intermediate_size"],
    "norm_eps": 1e-6,
}
PUBLISHED: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "hidden_act": "silu",
    "image_aspect_ratio": "anyres_max_9",
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "image_token_index": 151646,
    "mm_newline_position": "one_token",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "model_type": "llava",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "use_sliding_window": False,
}
"""What the `config.json`s of lmms-lab share."""
NAMES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "image_newline": "model.image_newline",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "vision_tower.vision_model.": "model.vision_tower.vision_tower.vision_model.",
    "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
}
"""Beginnings of names as transformers' conversion finds them, from its to lmms-lab's."""


def publish(directory: Path, ratio: str, is_tied: bool) -> None:
    """Make a directory that was saved under the older names one as lmms-lab publishes it."""
    config = TEXT | PUBLISHED | {"tie_word_embeddings": is_tied, "mm_hidden_size": VISION["hidden_size"]}
    config |= {"mm_vision_tower": TOWER, "image_aspect_ratio": ratio, "image_grid_pinpoints": PINPOINTS}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        start = next(start for start in NAMES if name.startswith(start))
        renamed[NAMES[start] + name.removeprefix(start)] = tensor
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    for file in ("chat_template.jinja", "processor_config.json", "preprocessor_config.json", "generation_config.json"):
        (directory / file).unlink(missing_ok=True)
    # Its tokenizer has neither mark; nothing stands behind them.
    added = json.loads((directory / "added_tokens.json").read_text())
    marks = {str(added.pop(mark)) for mark in ("<image>", "<video>")}
    (directory / "added_tokens.json").write_text(json.dumps(added))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    decoder = settings["added_tokens_decoder"]
    settings |= {
        "added_tokens_decoder": {number: token for number, token in decoder.items() if number not in marks},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if str(token["id"]) not in marks]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
