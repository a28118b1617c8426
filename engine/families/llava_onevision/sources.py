"""Our parameter names -> where a LLaVA-OneVision keeps them that transformers saved, or that lmms-lab published."""

from collections.abc import Collection
from dataclasses import replace

from engine.families.base import Source
from engine.families.internvl2.sources import llama_layer
from engine.model_config import ModelConfig, SiglipConfig

MODULES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.image_newline": "image_newline",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
}
"""Beginnings of the names that the modules have, which some files keep, of transformers and of the published code -> of
the older ones of transformers, which most files keep."""
INNER = "vision_tower.vision_model."
"""Older still: the tower inside of another module."""


def language_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our language parameter names (those of Llama in transformers) -> where a checkpoint of `tensors` keeps them."""
    stored, language = _by_older_name(tensors), config.language
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    layer = llama_layer(language)
    names += [f"model.layers.{index}.{name}" for index in range(language.num_layers) for name in layer]
    older = {name: f"language_model.{name}" for name in names}
    sources = {name: Source(stored.get(tensor, tensor)) for name, tensor in older.items()}
    if language.tie_word_embeddings:
        # Files may hold the head once more.
        copies = tuple({stored[older["lm_head.weight"]]} if older["lm_head.weight"] in stored else ())
        sources["lm_head.weight"] = replace(sources["model.embed_tokens.weight"], copies=copies)
    return sources


def vision_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our vision parameter names -> where a checkpoint of `tensors` keeps them."""
    vision, stored = config.vision, _by_older_name(tensors)
    assert isinstance(vision, SiglipConfig), config

    def source(*names: str) -> Source:
        first, *rest = (stored.get(name, name) for name in names)
        return Source(first, joined=tuple(rest))

    kinds = ("weight", "bias")
    patches = "vision_tower.embeddings.patch_embedding"
    sources = {f"embeddings.{kind}": source(f"{patches}.{kind}") for kind in kinds}
    sources["embeddings.position_embedding"] = source("vision_tower.embeddings.position_embedding.weight")
    for index in range(vision.num_layers):
        theirs = f"vision_tower.encoder.layers.{index}"
        for kind in kinds:
            for part in ("layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
                sources[f"layers.{index}.{part}.{kind}"] = source(f"{theirs}.{part}.{kind}")
            fused = [f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            sources[f"layers.{index}.self_attn.qkv.{kind}"] = source(*fused)
    for part in ("linear_1", "linear_2"):
        sources |= {f"projector.{part}.{kind}": source(f"multi_modal_projector.{part}.{kind}") for kind in kinds}
    return sources | {"newline": source("image_newline")}


def _by_older_name(tensors: Collection[str]) -> dict[str, str]:
    """Older name -> name in the file."""
    stored: dict[str, str] = {}
    for tensor in tensors:
        module = next((module for module in MODULES if tensor.startswith(module)), "")
        older = MODULES.get(module, "") + tensor.removeprefix(module)
        stored[older.replace(INNER, "vision_tower.")] = tensor
    return stored
