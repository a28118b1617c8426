"""Random checkpoints in the published InternVL2 format, for tests and for a demo without trained weights."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
VOCAB_SIZE = 512
"""Rows of the embedding that hold `write_tokenizer`'s vocabulary; as in published checkpoints some stay unused."""
CORPUS = (
    "What colour is the large circle in the middle of the picture?",
    "How many red squares are there? There are two red squares.",
    "Where is the green triangle? It is left of the blue circle.",
    "Describe the picture in one sentence. Read the word at the top.",
    "Image-1: Image-2: system user assistant yes no one two three four five",
    "图片里有什么颜色？你是一个有用无害的人工智能助手。",
)


def write_checkpoint(directory: Path, config: Mapping[str, Any], seed: int, shards: int = 1) -> None:
    """Write `config.json` and random weights of its `torch_dtype`, the same for any number of `shards`.

    config: a published-style `config.json` with any of the language layouts.
    """
    write_config(directory, config)
    dtype = DTYPES[config["torch_dtype"]]
    shapes = tensor_shapes(config)
    rng = np.random.default_rng(seed)
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        tensors = {name: random_tensor(rng, name, shapes[name]).astype(dtype) for name in part}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(map(math.prod, shapes.values())) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the published model classes save for a `config.json`."""
    language = {f"language_model.{name}": shape for name, shape in _language_shapes(config["llm_config"]).items()}
    vision = {f"vision_model.{name}": shape for name, shape in _vision_shapes(config["vision_config"]).items()}
    wide = config["vision_config"]["hidden_size"] * int(1 / config["downsample_ratio"]) ** 2
    out = config["llm_config"]["hidden_size"]
    projector: dict[str, tuple[int, ...]] = {
        "mlp1.0.weight": (wide,),
        "mlp1.0.bias": (wide,),
        "mlp1.1.weight": (out, wide),
        "mlp1.1.bias": (out,),
        "mlp1.3.weight": (out, out),
        "mlp1.3.bias": (out,),
    }
    return vision | language | projector


def write_tokenizer(directory: Path, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> None:
    """Write a byte-level BPE vocabulary below `VOCAB_SIZE` with a family's special tokens, as published for Qwen2."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in special_tokens}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": token} | flags for token, number in ids.items()},
        "additional_special_tokens": list(special_tokens[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    for file, content in (("added_tokens.json", ids), ("tokenizer_config.json", settings)):
        (directory / file).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _language_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layout = config["architectures"][0]
    embedding, head = "model.embed_tokens", "lm_head"
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.down_proj.weight": (hidden, inner),
    }
    match layout:
        case "InternLM2ForCausalLM":
            embedding, head = "model.tok_embeddings", "output"
            layer = {
                "attention_norm.weight": (hidden,),
                "ffn_norm.weight": (hidden,),
                "attention.wqkv.weight": (queries + 2 * keys, hidden),
                "attention.wo.weight": (hidden, queries),
                "feed_forward.w1.weight": (inner, hidden),
                "feed_forward.w3.weight": (inner, hidden),
                "feed_forward.w2.weight": (hidden, inner),
            }
        case "Phi3ForCausalLM":
            layer["self_attn.qkv_proj.weight"] = (queries + 2 * keys, hidden)
            layer["mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        case "Qwen2ForCausalLM" | "Qwen3ForCausalLM" | "LlamaForCausalLM":
            for part, rows in (("q", queries), ("k", keys), ("v", keys)):
                layer[f"self_attn.{part}_proj.weight"] = (rows, hidden)
                if layout == "Qwen2ForCausalLM":
                    layer[f"self_attn.{part}_proj.bias"] = (rows,)
            if layout == "Qwen3ForCausalLM":
                layer |= {f"self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
            layer |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
        case _:
            raise ValueError(f"language layout {layout!r} is unknown here")
    shapes: dict[str, tuple[int, ...]] = {f"{embedding}.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes[f"{head}.weight"] = (vocab, hidden)
    return shapes


def _vision_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    layer: dict[str, tuple[int, ...]] = {
        "attn.qkv.weight": (3 * hidden, hidden),
        "attn.proj.weight": (hidden, hidden),
        "attn.proj.bias": (hidden,),
        "mlp.fc1.weight": (inner, hidden),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (hidden, inner),
        "mlp.fc2.bias": (hidden,),
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        "ls1": (hidden,),
        "ls2": (hidden,),
    }
    if config["qkv_bias"]:
        layer["attn.qkv.bias"] = (3 * hidden,)
    if config["qk_normalization"]:
        layer |= {"attn.q_norm.weight": (hidden,), "attn.k_norm.weight": (hidden,)}
    if config["norm_type"] == "layer_norm":
        layer |= {"norm1.bias": (hidden,), "norm2.bias": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, hidden),
        "embeddings.position_embedding": (1, (config["image_size"] // patch) ** 2 + 1, hidden),
        "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "embeddings.patch_embedding.bias": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32, scaled so that activations stay near 1 and attention is neither flat nor one-hot."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if "embed" in name and "patch" not in name:
        return values
    if name.endswith(".bias"):
        return values * np.float32(0.1)
    if len(shape) == 1:
        return 1 + values * np.float32(0.1)
    return values / np.float32(math.sqrt(math.prod(shape[1:])))
