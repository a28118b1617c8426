"""Our parameter names -> where a Qwen2-VL or Qwen2.5-VL checkpoint keeps them."""

from collections.abc import Collection
from dataclasses import replace

from engine.families.base import Source
from engine.families.internvl2.sources import llama_layer
from engine.model_config import ModelConfig, Norm, QwenVitConfig

MODULES = {"visual.": "model.visual.", "model.": "model.language_model."}
"""Beginnings of the published names -> of the modules', which some files keep."""


def language_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our language parameter names (those of Llama in transformers) -> where a checkpoint of `tensors` keeps them."""
    language = config.language
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    layer = llama_layer(language)
    names += [f"model.layers.{index}.{name}" for index in range(language.num_layers) for name in layer]
    sources = {name: Source(_stored(name, tensors)) for name in names}
    if language.tie_word_embeddings:
        # Files may hold the head once more.
        copies = tuple({"lm_head.weight"}.intersection(tensors))
        sources["lm_head.weight"] = replace(sources["model.embed_tokens.weight"], copies=copies)
    return sources


def vision_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our vision parameter names -> where a checkpoint of `tensors` keeps them."""
    vision = config.vision
    assert isinstance(vision, QwenVitConfig), config
    kinds = ("weight", "bias")
    norms = kinds if vision.norm is Norm.LAYER else kinds[:1]
    mlp = ("gate_proj", "up_proj", "down_proj") if vision.is_gated else ("fc1", "fc2")
    products = ["attn.qkv", "attn.proj", *(f"mlp.{part}" for part in mlp)]
    block = [f"{part}.{kind}" for part in products for kind in kinds]
    block += [f"{part}.{kind}" for part in ("norm1", "norm2") for kind in norms]
    names = [f"blocks.{index}.{name}" for index in range(vision.num_layers) for name in block]
    names += [f"merger.{part}.{kind}" for part in ("mlp.0", "mlp.2") for kind in kinds]
    names += [f"merger.ln_q.{kind}" for kind in norms]
    sources = {name: Source(_stored(f"visual.{name}", tensors)) for name in names}
    patches = Source(_stored("visual.patch_embed.proj.weight", tensors))
    return {"patch_embed.weight": patches} | sources


def _stored(name: str, tensors: Collection[str]) -> str:
    """The name in the file."""
    if name in tensors:
        return name
    for published, module in MODULES.items():
        if name.startswith(published) and module + name.removeprefix(published) in tensors:
            return module + name.removeprefix(published)
    return name
