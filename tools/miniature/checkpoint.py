"""A miniature model, and a trained one as an ordinary checkpoint of its family."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.model_config import InternVitConfig, LanguageConfig, QwenVitConfig, VisionConfig
from tools.miniature.configs import INTERNVL2, PICTURES, QWEN2_VL
from tools.miniature.internvit import InternVit
from tools.miniature.model import LanguageModel, idle_layer
from tools.miniature.qwen2_vit import Qwen2Vit
from tools.miniature.reader import Reader
from tools.miniature.vocabulary import SPECIAL_TOKENS, write_tokenizer

VisionModel = InternVit | Qwen2Vit
PUBLISHED = {
    # The projector stands beside the encoder.
    INTERNVL2: {"vision_model.mlp1": "mlp1"},
    QWEN2_VL: {"vision_model.": "visual.", "language_model.": ""},
}
"""Beginnings of our names of parameters -> those of each layout."""
IDLE = 2
"""Layers that a deepened model gets behind each."""


class Miniature(nn.Module):
    """Both halves of one model; `shallow` leaves out two of three layers of its language model, until `deepen`.

    config: `config.json`.
    """

    def __init__(self, config: dict[str, Any], shallow: bool = False) -> None:
        super().__init__()
        self.config, self.reader = config, Reader(config)
        language = self.language_config()
        layers = language.num_layers // (1 + IDLE if shallow else 1)
        self.vision_model = _vision_model(self.reader.config.vision)
        self.language_model = LanguageModel(replace(language, num_layers=layers), shallow)

    def language_config(self) -> LanguageConfig:
        """Of the whole model."""
        return self.reader.config.language

    def deepen(self) -> None:
        """Put the other layers in; they do nothing yet."""
        decoder, config = self.language_model.model, self.language_config()
        idle = [[idle_layer(config) for _ in range(IDLE)] for _ in decoder.layers]
        decoder.layers = nn.ModuleList(
            layer for first, others in zip(decoder.layers, idle, strict=True) for layer in (first, *others)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """bfloat16, by their published names."""
        return {
            self.published(name): tensor.to(torch.bfloat16).contiguous() for name, tensor in self.state_dict().items()
        }

    def published(self, name: str) -> str:
        """A parameter's name in a checkpoint."""
        for ours, theirs in PUBLISHED[self.config["model_type"]].items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name


def _vision_model(config: VisionConfig) -> VisionModel:
    match config:
        case InternVitConfig():
            return InternVit(config)
        case QwenVitConfig():
            return Qwen2Vit(config)
        case _:
            raise AssertionError(config)


def export(model: Miniature, directory: Path) -> None:
    """Write `config.json`, `model.safetensors`, the tokenizer and what else the layout has."""
    directory.mkdir(parents=True, exist_ok=True)
    layout = model.config["model_type"]
    files = {"config.json": model.config}
    if layout == QWEN2_VL:
        files["preprocessor_config.json"] = PICTURES
    for file, content in files.items():
        (directory / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(model.tensors(), directory / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(directory, SPECIAL_TOKENS[layout])


def restore(directory: Path) -> Miniature:
    """The model of a directory that `export` wrote."""
    model = Miniature(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    tensors = load_file(directory / "model.safetensors")
    model.load_state_dict({name: tensors[model.published(name)].float() for name in model.state_dict()})
    return model
