"""The two models' configurations as published, and a trained model as an ordinary InternVL2 checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tools.miniature.model import LanguageModel, VisionModel, idle_layer
from tools.miniature.scenes import TILE, TILES
from tools.miniature.vocabulary import make_tokenizer, write_tokenizer

COMMON: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": TILE,
    "max_dynamic_patch": TILES**2,
    "min_dynamic_patch": TILES**2,
    "model_type": "internvl_chat",
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
    "vocab_size": make_tokenizer().get_vocab_size(),
}


def make_config(vision: tuple[int, int, int], language: tuple[int, int, int]) -> dict[str, Any]:
    """`config.json` of a model whose halves have these hidden sizes, layers, heads."""
    sizes = [
        {
            "hidden_size": size,
            "intermediate_size": round(size * ratio),
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
        }
        for (size, layers, heads), ratio in ((vision, 8 / 3), (language, 2.0))
    ]
    language_config = LANGUAGE | sizes[1] | {"num_key_value_heads": language[2]}
    return COMMON | {"llm_config": language_config, "vision_config": VISION | sizes[0]}


IDLE = 2
"""Layers that a deepened model gets behind each."""
CONFIGS = {
    "small": make_config(vision=(64, 3, 2), language=(96, 4, 3)),
    "large": make_config(vision=(96, 4, 3), language=(128, 24, 4)),
}


class Miniature(nn.Module):
    """Both halves of one model; `shallow` leaves out two of three layers of its language model, until `deepen`."""

    def __init__(self, config: dict[str, Any], shallow: bool = False) -> None:
        super().__init__()
        self.config = config
        language = config["llm_config"]
        layers = language["num_hidden_layers"] // (1 + IDLE if shallow else 1)
        self.vision_model = VisionModel(config["vision_config"], language["hidden_size"])
        self.language_model = LanguageModel(language | {"num_hidden_layers": layers}, shallow)

    def deepen(self) -> None:
        """Put the other layers in; they do nothing yet."""
        decoder, config = self.language_model.model, self.config["llm_config"]
        idle = [[idle_layer(config) for _ in range(IDLE)] for _ in decoder.layers]
        decoder.layers = nn.ModuleList(
            layer for first, others in zip(decoder.layers, idle, strict=True) for layer in (first, *others)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """bfloat16, by their published names."""
        return {_published(name): tensor.to(torch.bfloat16).contiguous() for name, tensor in self.state_dict().items()}


def export(model: Miniature, directory: Path) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")
    save_file(model.tensors(), directory / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(directory)


def restore(directory: Path) -> Miniature:
    """The model of a directory that `export` wrote."""
    model = Miniature(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    tensors = load_file(directory / "model.safetensors")
    model.load_state_dict({name: tensors[_published(name)].float() for name in model.state_dict()})
    return model


def _published(name: str) -> str:
    """The projector stands beside the encoder in a checkpoint."""
    return name.replace("vision_model.mlp1", "mlp1")
