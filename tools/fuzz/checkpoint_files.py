"""Tiny whole checkpoints in the layouts that are read, file by file, to be spoilt."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from sentencepiece import sentencepiece_model_pb2
from tokenizers import pre_tokenizers

from engine.build.read_role import language_shapes, vision_shapes
from engine.families import Source, llava_onevision, qwen2_5_vl, qwen2_vl, read_model
from engine.families.llava_onevision.prompt import CHAT_TEMPLATES, DEFAULT
from engine.families.llava_qwen import config as llava_qwen
from engine.families.qwen2_vl.config import CHAT_TEMPLATE
from tools.make_random_pair import SMALL

SAFETENSORS = "model.safetensors"
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
LLAVA_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
VOCABULARY = 288
LANGUAGE = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": VOCABULARY,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
QWEN_HEADS = {"num_attention_heads": 1, "num_key_value_heads": 1}
QWEN_SECTIONS = [1, 1, 2]
VISION = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1}
QWEN_VISION = {"depth": 1, "num_heads": 1, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
proto: Any = sentencepiece_model_pb2


@cache
def chat_layout() -> dict[str, bytes]:
    """As OpenGVLab publishes it, around InternLM2 with a SentencePiece tokenizer."""
    scaling = {"type": "dynamic", "factor": 2.0}
    language = SMALL["llm_config"] | LANGUAGE | {"rope_scaling": scaling, "bias": False}
    config = SMALL | {"llm_config": language, "vision_config": SMALL["vision_config"] | VISION}
    return _with_weights({"config.json": _json(config), **_sentencepiece()})


@cache
def library_layout() -> dict[str, bytes]:
    """As transformers saves it, around Qwen2 with `tokenizer.json`, in one shard with an index."""
    vision = {
        "attention_bias": True,
        "hidden_act": "gelu",
        "image_size": [112, 112],
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "patch_size": [14, 14],
        "use_qk_norm": False,
    }
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "text_config": LANGUAGE | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        "vision_config": vision | VISION,
    }
    files = {
        "config.json": _json(config),
        **_byte_level(SPECIAL),
        "generation_config.json": _json({"eos_token_id": [262, 260]}),
        "preprocessor_config.json": _json({"min_patches": 1, "max_patches": 4, "size": {"height": 112, "width": 112}}),
        "processor_config.json": _json({"image_seq_length": 16}),
    }
    files = _with_weights(files)
    shard = "model-00001-of-00001.safetensors"
    files[shard] = files.pop(SAFETENSORS)
    size = int.from_bytes(files[shard][:8], "little")
    names = [name for name in json.loads(files[shard][8 : 8 + size]) if name != "__metadata__"]
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    return files | {"model.safetensors.index.json": _json(index)}


@cache
def vocabulary_layout() -> dict[str, bytes]:
    """As OpenGVLab publishes it, around Qwen2 with `vocab.json` and `merges.txt`."""
    language = LANGUAGE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
    config = SMALL | {
        "template": "Hermes-2",
        "llm_config": language,
        "vision_config": SMALL["vision_config"] | VISION,
    }
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(symbols)} | {"ab": 256, "abc": 257}
    added = {token: 258 + number for number, token in enumerate(("<|endoftext|>", *SPECIAL[3:]))}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": list(SPECIAL[3:]), "bos_token": None}
    files = {
        "config.json": _json(config),
        "vocab.json": _json(vocab),
        "merges.txt": b"#version: 0.2\na b\nab c\n",
        "added_tokens.json": _json(added),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json({"eos_token": {"content": "<|im_end|>", "lstrip": False}}),
    }
    return _with_weights(files)


@cache
def qwen2_vl_layout() -> dict[str, bytes]:
    """As published, with the chat template, pictures' limits, and an index."""
    vision = QWEN_VISION | {"embed_dim": 4, "hidden_size": 8, "mlp_ratio": 1, "hidden_act": "quick_gelu", "in_chans": 3}
    sections = {"rope_scaling": {"type": "mrope", "mrope_section": QWEN_SECTIONS}}
    config = LANGUAGE | QWEN_HEADS | sections | {"architectures": [qwen2_vl.ARCHITECTURE], "vision_config": vision}
    pictures = {"min_pixels": 256, "max_pixels": 4096, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    files = {
        "config.json": _json(config),
        **_byte_level(QWEN_SPECIAL),
        "generation_config.json": _json({"eos_token_id": [259, 258]}),
        "preprocessor_config.json": _json(pictures | {"size": {"shortest_edge": 256, "longest_edge": 4096}}),
        "chat_template.json": _json({"chat_template": CHAT_TEMPLATE}),
    }
    return _with_weights(files)


@cache
def qwen2_5_vl_layout() -> dict[str, bytes]:
    """As newer versions of transformers save it: a section for the language model, processors in one file."""
    vision = QWEN_VISION | {
        "hidden_size": 4,
        "intermediate_size": 4,
        "out_hidden_size": 8,
        "hidden_act": "silu",
        "window_size": 32,
        "fullatt_block_indexes": [0],
        "tokens_per_second": 2,
    }
    rope = {"rope_type": "default", "mrope_section": QWEN_SECTIONS, "rope_theta": 10000.0}
    text = LANGUAGE | QWEN_HEADS | {"rope_parameters": rope}
    config = {"architectures": [qwen2_5_vl.ARCHITECTURE], "text_config": text, "vision_config": vision}
    image = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "do_resize": True, "resample": 3}
    files = {
        "config.json": _json(config),
        **_byte_level(QWEN_SPECIAL),
        "processor_config.json": _json({"image_processor": image}),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
    return _with_weights(files)


@cache
def llava_layout() -> dict[str, bytes]:
    """As transformers saves LLaVA-OneVision."""
    grids = [[28 * rows, 28 * columns] for rows in (1, 2) for columns in (1, 2)]
    config = {
        "architectures": [llava_onevision.ARCHITECTURE],
        "text_config": LANGUAGE | {"model_type": "qwen2"},
        "vision_config": VISION | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
        "image_grid_pinpoints": grids,
        "vision_aspect_ratio": "anyres_max_2",
        "vision_feature_layer": -1,
    }
    image = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_grid_pinpoints": grids}
    files = {
        "config.json": _json(config),
        **_byte_level(LLAVA_SPECIAL),
        "preprocessor_config.json": _json(image),
        "processor_config.json": _json({"num_image_tokens": 4, "vision_aspect_ratio": "anyres_max_2"}),
        "chat_template.json": _json({"chat_template": CHAT_TEMPLATES[DEFAULT]}),
    }
    return _with_weights(files)


@cache
def llava_published_layout() -> dict[str, bytes]:
    """Of lmms-lab, whose configuration says no size of the vision encoder: all but the weights, which are large."""
    config = LANGUAGE | {
        "architectures": [llava_qwen.ARCHITECTURE],
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_resampler_type": None,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": next(iter(llava_qwen.TOWERS)),
        "mm_hidden_size": 1152,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[384, 384], [384, 768]],
    }
    return {"config.json": _json(config), **_byte_level(LLAVA_SPECIAL[:-2])}


LAYOUTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "chat": chat_layout,
    "library": library_layout,
    "vocabulary": vocabulary_layout,
    "qwen2_vl": qwen2_vl_layout,
    "qwen2_5_vl": qwen2_5_vl_layout,
    "llava": llava_layout,
    "llava_published": llava_published_layout,
}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _byte_level(special: Sequence[str]) -> dict[str, bytes]:
    """`tokenizer.json` of bytes and these, and what stands beside it."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(symbols)} | {"ab": 256, "abc": 257}
    added = [_added(258 + number, token) for number, token in enumerate(special)]
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": step,
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["ab", "c"]]},
    }
    settings = {
        "added_tokens_decoder": {str(token["id"]): token for token in added},
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "additional_special_tokens": list(special[3:]),
    }
    return {"tokenizer.json": _json(tokenizer), "tokenizer_config.json": _json(settings)}


def _added(number: int, token: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _with_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """And a tensor of zeros for everything that a build reads."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_bytes(files["config.json"])
        family, config = read_model(Path(place))
    names = {"language_model.model.tok_embeddings.weight"} if "tokenizer.model" in files else set()
    sources = family.vision_sources(config, names) | family.language_sources(config, names)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in (vision_shapes(config.vision) | language_shapes(config.language)).items():
        _add(tensors, sources[name], shape)
    return files | {SAFETENSORS: save(tensors)}


def _add(tensors: dict[str, np.ndarray], source: Source, shape: tuple[int, ...]) -> None:
    rows = shape[0] // len(source.tensors())
    for tensor in source.tensors():
        held = len(tensors[tensor]) if source.rows is not None and tensor in tensors else 0
        tensors[tensor] = np.zeros((held + rows, *shape[1:]), np.float16)


def _sentencepiece() -> dict[str, bytes]:
    model = proto.ModelProto()
    kind = proto.ModelProto.SentencePiece
    for token in SPECIAL[:3]:
        model.pieces.add(piece=token, score=0.0, type=kind.UNKNOWN if token == "<unk>" else kind.CONTROL)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kind.BYTE)
    for number, piece in enumerate(("▁", "a", "b", "▁a", "ab", "▁ab")):
        model.pieces.add(piece=piece, score=-float(number), type=kind.NORMAL)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = 0
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    added = [_added(265 + number, token) for number, token in enumerate(SPECIAL[3:])]
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "added_tokens_decoder": {str(token["id"]): token for token in added},
    }
    return {
        "tokenizer.model": model.SerializeToString(),
        "tokenizer_config.json": _json(settings),
        "added_tokens.json": _json({token["content"]: token["id"] for token in added}),
    }
