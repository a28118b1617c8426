"""Our parameter names -> where transformers keeps them when it saves an InternVL."""

from collections.abc import Collection

from engine.families import internvl2
from engine.families.base import Source
from engine.model_config import ModelConfig

VISION = {
    "vision_model.": "vision_tower.",
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.",
    "encoder.layers.": "encoder.layer.",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
}
"""Parts of the vision names of `internvl2`, replaced in this order."""
MODULES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""Beginnings of the names that the modules have, which some files keep -> of the older ones that most files keep."""


def language_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our language parameter names (those of Llama in transformers) -> where a checkpoint of `tensors` keeps them."""
    stored = _by_older_name(tensors)
    sources = internvl2.language_sources(config, stored)
    head = "language_model.lm_head.weight"
    if head in stored:
        # A head of its own counts, even where the configuration ties it.
        sources["lm_head.weight"] = Source(head)
    return {name: Source(stored.get(source.tensor, source.tensor)) for name, source in sources.items()}


def vision_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our vision parameter names (those of `internvl2`) -> where a checkpoint of `tensors` keeps them."""
    stored = _by_older_name(tensors)
    sources: dict[str, Source] = {}
    for name, source in internvl2.vision_sources(config, tensors).items():
        tensor = source.tensor
        for theirs, saved in VISION.items():
            tensor = tensor.replace(theirs, saved)
        parts = [tensor.replace(".qkv.", f".{part}_proj.") for part in "qkv"] if ".qkv." in tensor else [tensor]
        first, *rest = (stored.get(part, part) for part in parts)
        sources[name] = Source(first, joined=tuple(rest))
    return sources


def _by_older_name(tensors: Collection[str]) -> dict[str, str]:
    """Older name -> name in the file."""
    stored: dict[str, str] = {}
    for tensor in tensors:
        module = next((module for module in MODULES if tensor.startswith(module)), "")
        stored[MODULES.get(module, "") + tensor.removeprefix(module)] = tensor
    return stored
