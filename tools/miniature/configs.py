"""The models' configurations as published: `config.json` of an InternVL2 and of a Qwen2-VL, in miniature."""

from typing import Any

from tools.miniature.scenes import SIDE, TILE, TILES
from tools.miniature.vocabulary import SPECIAL_TOKENS, make_tokenizer, token_id

INTERNVL2, QWEN2_VL = "internvl_chat", "qwen2_vl"
"""Each layout's `model_type`."""
COMMON: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": TILE,
    "max_dynamic_patch": TILES**2,
    "min_dynamic_patch": TILES**2,
    "model_type": INTERNVL2,
    "ps_version": "v2",
    "select_layer": -1,
    "system_message": "",
    "template": "Hermes-2",
    "torch_dtype": "bfloat16",
    "use_thumbnail": False,
}
VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "hidden_act": "gelu",
    "image_size": TILE,
    "layer_norm_eps": 1e-6,
    "model_type": "intern_vit_6b",
    "norm_type": "layer_norm",
    "num_channels": 3,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
}
LANGUAGE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "model_type": "llama",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": make_tokenizer(SPECIAL_TOKENS[INTERNVL2]).get_vocab_size(),
}
NATIVE_TOKENIZER = make_tokenizer(SPECIAL_TOKENS[QWEN2_VL])
NATIVE: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_act": "silu",
    "image_token_id": token_id(NATIVE_TOKENIZER, "<|image_pad|>"),
    "max_position_embeddings": 1024,
    "model_type": QWEN2_VL,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "video_token_id": token_id(NATIVE_TOKENIZER, "<|video_pad|>"),
    "vision_end_token_id": token_id(NATIVE_TOKENIZER, "<|vision_end|>"),
    "vision_start_token_id": token_id(NATIVE_TOKENIZER, "<|vision_start|>"),
    "vocab_size": NATIVE_TOKENIZER.get_vocab_size(),
}
NATIVE_VISION: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "in_chans": 3,
    "model_type": QWEN2_VL,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PICTURES: dict[str, Any] = {"max_pixels": SIDE**2, "min_pixels": 56**2}
"""`preprocessor_config.json` of a model whose pictures are of native size, up to that of a scene."""


def make_config(vision: tuple[int, int, int], language: tuple[int, int, int]) -> dict[str, Any]:
    """`config.json` of an InternVL2 whose halves have these hidden sizes, layers, heads."""
    (size, layers, heads), (language_size, language_layers, language_heads) = vision, language
    halves = {
        "llm_config": LANGUAGE | _language_sizes(language_size, language_layers, language_heads),
        "vision_config": VISION
        | {
            "hidden_size": size,
            "intermediate_size": round(size * 8 / 3),
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
        },
    }
    return COMMON | halves


def make_native_config(vision: tuple[int, int, int], language: tuple[int, int, int]) -> dict[str, Any]:
    """`config.json` of a Qwen2-VL whose halves have these hidden sizes, layers, heads."""
    (size, layers, heads), (language_size, language_layers, language_heads) = vision, language
    half = language_size // language_heads // 2
    # As published: a quarter of the frequencies turns with time, the rest with row and column alike.
    rest = (half - half // 4) // 2
    sizes = {"depth": layers, "embed_dim": size, "hidden_size": language_size, "mlp_ratio": 4, "num_heads": heads}
    return (
        NATIVE
        | _language_sizes(language_size, language_layers, language_heads)
        | {"rope_scaling": {"type": "mrope", "mrope_section": [half - 2 * rest, rest, rest]}}
        | {"vision_config": NATIVE_VISION | sizes}
    )


def _language_sizes(size: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
    }


CONFIGS = {
    "small": make_config(vision=(64, 3, 2), language=(96, 4, 3)),
    "large": make_config(vision=(96, 4, 3), language=(128, 24, 4)),
    "small-qwen2-vl": make_native_config(vision=(64, 3, 2), language=(96, 4, 3)),
}
