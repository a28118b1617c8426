"""Our parameter names -> where an InternVL2 checkpoint keeps them, whichever its language model."""

from collections.abc import Collection
from dataclasses import replace

from engine.families.base import Source
from engine.model_config import InternVitConfig, LanguageConfig, ModelConfig, Norm


def language_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our language parameter names (those of Llama in transformers) -> where a checkpoint of `tensors` keeps them."""
    language = config.language
    embedding, head, read_layer = "model.embed_tokens", "lm_head", llama_layer
    if "language_model.model.tok_embeddings.weight" in tensors:
        embedding, head, read_layer = "model.tok_embeddings", "output", _internlm2_layer
    elif "language_model.model.layers.0.self_attn.qkv_proj.weight" in tensors:
        read_layer = _phi3_layer
    names = {
        "model.embed_tokens.weight": Source(f"{embedding}.weight"),
        "model.norm.weight": Source("model.norm.weight"),
        "lm_head.weight": Source(f"{head}.weight"),
    }
    layer = read_layer(language)
    for index in range(language.num_layers):
        prefix = f"model.layers.{index}"
        names |= {f"{prefix}.{name}": Source(f"{prefix}.{at.tensor}", at.rows) for name, at in layer.items()}
    sources = {name: Source(f"language_model.{at.tensor}", at.rows) for name, at in names.items()}
    if language.tie_word_embeddings:
        copies = tuple({sources["lm_head.weight"].tensor}.intersection(tensors))
        sources["lm_head.weight"] = replace(sources["model.embed_tokens.weight"], copies=copies)
    return sources


def vision_sources(config: ModelConfig, tensors: Collection[str]) -> dict[str, Source]:
    """Our vision parameter names (InternVL's without `vision_model.`) -> where a checkpoint keeps them."""
    vision = config.vision
    assert isinstance(vision, InternVitConfig), config
    names = [
        "embeddings.class_embedding",
        "embeddings.position_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.patch_embedding.bias",
    ]
    layer = ["attn.qkv.weight", "attn.proj.weight", "attn.proj.bias", "norm1.weight", "norm2.weight", "ls1", "ls2"]
    layer += [f"mlp.{part}.{kind}" for part in ("fc1", "fc2") for kind in ("weight", "bias")]
    if vision.qkv_bias:
        layer += ["attn.qkv.bias"]
    if vision.qk_norm:
        layer += ["attn.q_norm.weight", "attn.k_norm.weight"]
    if vision.norm is Norm.LAYER:
        layer += ["norm1.bias", "norm2.bias"]
    names += [f"encoder.layers.{index}.{name}" for index in range(vision.num_layers) for name in layer]
    projector = [f"mlp1.{part}.{kind}" for part in (0, 1, 3) for kind in ("weight", "bias")]
    return {name: Source(f"vision_model.{name}") for name in names} | {name: Source(name) for name in projector}


def llama_layer(language: LanguageConfig) -> dict[str, Source]:
    """Llama, and what differs from it by biases and norms: Qwen2 and Qwen3."""
    names = ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.weight"]
    names += [f"self_attn.{part}_proj.weight" for part in "qkv"]
    names += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    if language.qkv_bias:
        names += [f"self_attn.{part}_proj.bias" for part in "qkv"]
    if language.qk_norm:
        names += [f"self_attn.{part}_norm.weight" for part in "qk"]
    return {name: Source(name) for name in names}


def _phi3_layer(language: LanguageConfig) -> dict[str, Source]:
    """`qkv_proj` holds the rows of q, k, v in turn, `gate_up_proj` those of gate and up."""
    queries = language.num_heads * language.head_dim
    keys = queries + language.num_kv_heads * language.head_dim
    values = keys + language.num_kv_heads * language.head_dim
    inner = language.intermediate_size
    kept = ["input_layernorm", "post_attention_layernorm", "self_attn.o_proj", "mlp.down_proj"]
    return {f"{name}.weight": Source(f"{name}.weight") for name in kept} | {
        "self_attn.q_proj.weight": Source("self_attn.qkv_proj.weight", ((0, queries),)),
        "self_attn.k_proj.weight": Source("self_attn.qkv_proj.weight", ((queries, keys),)),
        "self_attn.v_proj.weight": Source("self_attn.qkv_proj.weight", ((keys, values),)),
        "mlp.gate_proj.weight": Source("mlp.gate_up_proj.weight", ((0, inner),)),
        "mlp.up_proj.weight": Source("mlp.gate_up_proj.weight", ((inner, 2 * inner),)),
    }


def _internlm2_layer(language: LanguageConfig) -> dict[str, Source]:
    """`wqkv` is [num_kv_heads, num_heads / num_kv_heads + 2, D, C]: each KV head's queries, its key, its value."""
    group = language.num_heads // language.num_kv_heads

    def rows(first: int, stop: int) -> tuple[tuple[int, int], ...]:
        starts = [kv_head * (group + 2) for kv_head in range(language.num_kv_heads)]
        return tuple(((start + first) * language.head_dim, (start + stop) * language.head_dim) for start in starts)

    return {
        "input_layernorm.weight": Source("attention_norm.weight"),
        "post_attention_layernorm.weight": Source("ffn_norm.weight"),
        "self_attn.q_proj.weight": Source("attention.wqkv.weight", rows(0, group)),
        "self_attn.k_proj.weight": Source("attention.wqkv.weight", rows(group, group + 1)),
        "self_attn.v_proj.weight": Source("attention.wqkv.weight", rows(group + 1, group + 2)),
        "self_attn.o_proj.weight": Source("attention.wo.weight"),
        "mlp.gate_proj.weight": Source("feed_forward.w1.weight"),
        "mlp.up_proj.weight": Source("feed_forward.w3.weight"),
        "mlp.down_proj.weight": Source("feed_forward.w2.weight"),
    }
