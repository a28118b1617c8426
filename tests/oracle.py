"""Oracles nobody here wrote: transformers' eager language models on the weights of a published-format checkpoint."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from engine.bindings import SCORING_ENGINE
from engine.build.checkpoint import Checkpoint
from engine.build.language import language_graph
from engine.build.scoring import scoring_graph
from engine.build.targets.onnxruntime import write_engine, write_scoring_engine
from engine.build.weights import WeightReader
from engine.dims import Limits
from engine.families import family_of
from engine.runtime.language import LanguageModel
from engine.runtime.loading import load
from engine.runtime.prompt import PromptTokens, Pruning
from engine.target import Target
from tools.random_checkpoint import write_checkpoint

torch.set_num_threads(1)
LIMITS = Limits(max_tokens=256, max_batch=4, max_tiles=4)

COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 131,
}
LANGUAGES: dict[str, dict[str, Any]] = {
    "qwen2": COMMON | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 dynamic": COMMON
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        # Shorter than the prompts below, so that the stretched base is in use.
        "max_position_embeddings": 16,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "qwen3": COMMON | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "internlm2": COMMON
    | {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": False,
        # Shorter than the prompts below, so that the stretched base is in use.
        "max_position_embeddings": 16,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "phi3": COMMON
    | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_key_value_heads": 6,
        "attention_bias": False,
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 3.0, 4.0]},
        "sliding_window": None,
    },
    "llama": COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "num_key_value_heads": 1,
        "rope_scaling": None,
    },
}
"""One of each language layout that InternVL is published with; Qwen2 with the rotary scaling of InternVL3, too."""
VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "hidden_act": "gelu",
    "hidden_size": 24,
    "image_size": 56,
    "initializer_factor": 0.1,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-6,
    "norm_type": "layer_norm",
    "num_attention_heads": 3,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
}


def checkpoint_config(language: str, **changes: Any) -> dict[str, Any]:
    """A published-format `config.json` around one of `LANGUAGES`."""
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 56,
        "llm_config": LANGUAGES[language] | changes,
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "torch_dtype": "bfloat16",
        "template": "Hermes-2",
        "use_thumbnail": True,
        "vision_config": VISION,
    }


@dataclass(frozen=True)
class Pair:
    """The same weights twice: in our engine and in transformers."""

    engine: LanguageModel
    oracle: torch.nn.Module


def build_pair(
    directory: Path, language: str, prune_layers: tuple[int, ...] = (), scores: bool = False, **changes: Any
) -> Pair:
    """Write a random checkpoint, build its language engine through the ordinary build, load transformers' twin."""
    published = checkpoint_config(language, **changes)
    write_checkpoint(directory, published, seed=7)
    family, config_json = family_of(directory)
    config = family.read_config(directory, config_json)
    checkpoint = Checkpoint(directory)
    reader = WeightReader(checkpoint, family.language_sources(config, checkpoint.names()))
    graph = language_graph(config.language, LIMITS, prune_layers, scores)
    write_engine(graph, reader, directory / "language.onnx", lambda fraction: None)
    executor, scoring = load(Target.ONNXRUNTIME, directory / "language.onnx", threads=1), None
    if scores:
        write_scoring_engine(scoring_graph(config.language, LIMITS, prune_layers), directory)
        scoring = load(Target.ONNXRUNTIME, directory / SCORING_ENGINE, threads=1)
    engine = LanguageModel(executor, config.language, prune_layers, scores, scoring=scoring, places=4)
    return Pair(engine, load_oracle(directory, published["llm_config"]))


def load_oracle(directory: Path, llm_config: dict[str, Any]) -> torch.nn.Module:
    """transformers' eager model in float32; InternLM2 through its weights mapped onto Llama."""
    tensors: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    tensors = {
        name.removeprefix("language_model."): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith("language_model.")
    }
    architecture = llm_config["architectures"][0]
    if architecture == "InternLM2ForCausalLM":
        tensors = _internlm2_as_llama(tensors, llm_config)
        architecture = "LlamaForCausalLM"
    # transformers writes into the dictionaries that it is given.
    fields = {k: v for k, v in copy.deepcopy(llm_config).items() if k not in ("architectures", "model_type", "bias")}
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    pads = {"pad_token_id": 0} if architecture == "Phi3ForCausalLM" else {}
    config = config_class(**fields, **pads, attn_implementation="eager", use_cache=False)
    model = getattr(transformers, architecture)(config).float().eval()
    if llm_config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True)
    return model


def _internlm2_as_llama(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    renamed = {
        "tok_embeddings": "embed_tokens",
        "output.weight": "lm_head.weight",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    mapped: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "wqkv" in name:
            fused = tensor.view(kv_heads, heads // kv_heads + 2, -1, tensor.shape[-1])
            for part, rows in (("q", fused[:, :-2]), ("k", fused[:, -2]), ("v", fused[:, -1])):
                target = name.replace("attention.wqkv", f"self_attn.{part}_proj")
                mapped[target] = rows.reshape(-1, tensor.shape[-1])
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        mapped[name] = tensor
    return mapped


def embed(oracle: Any, ids: np.ndarray, visual_positions: np.ndarray, features: np.ndarray) -> torch.Tensor:
    """[S], [V], [V,C] -> [1,S,C]: word embeddings with the visual features put in."""
    # Rotary angles that follow the length would otherwise stay those of the longest run so far.
    oracle.model.rotary_emb.max_seq_len_cached = 0
    embeds = oracle.model.embed_tokens(torch.from_numpy(ids)).clone()
    embeds[torch.from_numpy(visual_positions)] = torch.from_numpy(features)
    return embeds[None]


@torch.no_grad()
def pruned_logits(oracle: Any, prompt: PromptTokens, answer: np.ndarray, *prunings: Pruning) -> np.ndarray:
    """Logits of the last token when tokens are dropped from transformers' hidden states before a layer, or several."""
    ids = np.concatenate([prompt.ids, answer])
    behind = len(prompt.ids) + np.arange(len(answer))
    survivors = {pruning.prune_layer: np.concatenate([pruning.rows, behind]) for pruning in prunings}
    model, seen = oracle.model, np.arange(len(ids))
    hidden = embed(oracle, ids, prompt.visual_positions, prompt.features)
    positions = torch.arange(len(ids))[None]
    cos, sin = model.rotary_emb(hidden, positions)
    for index, layer in enumerate(model.layers):
        if index in survivors:
            kept = torch.from_numpy(np.flatnonzero(np.isin(seen, survivors[index])))
            hidden, positions, cos, sin = hidden[:, kept], positions[:, kept], cos[:, kept], sin[:, kept]
            seen = seen[kept]
        size = hidden.shape[1]
        mask = torch.full((size, size), float("-inf")).triu(1)[None, None]
        output = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=(cos, sin))
        hidden = output[0] if isinstance(output, tuple) else output
    return oracle.lm_head(model.norm(hidden))[0, -1].numpy()
