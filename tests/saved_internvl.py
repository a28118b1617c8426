"""InternVL checkpoints as transformers itself saves them: random weights, processor files, and the model as oracle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from tests.eager import randomise
from tools.random_checkpoint import VOCAB_SIZE, write_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
"""Of the published `-hf` checkpoints, pictures only."""
TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB_SIZE,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
TEXTS = {
    # Shorter than any prompt with a picture, so that the stretched base is in use.
    "qwen2": TEXT | {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    "llama": TEXT | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": TEXT | {"head_dim": 16},
}
VISION: dict[str, Any] = {
    "attention_bias": True,
    "hidden_size": 24,
    "image_size": 56,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "patch_size": 14,
}
LARGE_VISION = VISION | {"attention_bias": False, "norm_type": "rms_norm", "use_qk_norm": True}
"""In the layout of the 6B encoder."""


class StillProcessor(InternVLProcessor):
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
        """What the processor makes of one user turn; the model is ready for it."""
        # Rotary angles that follow the length would otherwise stay those of the longest run so far.
        self.model.model.language_model.rotary_emb.max_seq_len_cached = 0
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(images=images or None, text=text, return_tensors="pt")


def save(directory: Path, text: str, vision: dict[str, Any] = VISION, older_names: bool = True, seed: int = 0) -> Saved:
    """A whole model around one of `TEXTS`, saved in float32.

    older_names: those that files have; else those of the modules.
    """
    write_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, extra_special_tokens=TOKENS)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    language = CONFIG_MAPPING[text](**TEXTS[text])
    config = InternVLConfig(
        text_config=language,
        vision_config=InternVLVisionConfig(**vision),
        image_seq_length=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=language.tie_word_embeddings,
        attn_implementation="eager",
    )
    model = InternVLForConditionalGeneration(config).float().eval()
    randomise(model)
    model.tie_weights()
    model.save_pretrained(directory, save_original_format=older_names)
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        max_patches=4,
    )
    image_processor.save_pretrained(directory)
    processor = StillProcessor(image_processor, tokenizer, None, image_seq_length=4, chat_template=CHAT_TEMPLATE)
    (directory / "processor_config.json").write_text(json.dumps({"image_seq_length": 4}))
    return Saved(directory, model, processor)
