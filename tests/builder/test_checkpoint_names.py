"""A checkpoint that says more than is read, or less, is refused before anything is built, in words of the field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.build import checkpoint_names
from engine.build.checkpoint import WEIGHTS, Checkpoint
from engine.build.read_role import check_weights
from engine.errors import CheckpointError
from engine.families import family_of
from tools.make_random_pair import SMALL
from tools.random_checkpoint import write_checkpoint

Tensors = dict[str, np.ndarray]
EMBEDDING, HEAD = "language_model.model.tok_embeddings.weight", "language_model.output.weight"
LAYER = "language_model.model.layers.0"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", SMALL, seed=1)
    return tmp_path / "checkpoint"


def check(directory: Path) -> None:
    family, config = family_of(directory)
    check_weights(Checkpoint(directory), family, family.read_config(directory, config))


def change(directory: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(directory / WEIGHTS)
    result = edit(tensors)
    save_file(result if isinstance(result, dict) else tensors, directory / WEIGHTS)


def configure(directory: Path, section: str, **values: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config[section].update(values)
    path.write_text(json.dumps(config))


def added(**tensors: tuple[int, ...]) -> Callable[[Tensors], None]:
    return lambda held: held.update({name: np.zeros(shape, np.float32) for name, shape in tensors.items()})


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.attention.rotary_emb.inv_freq",
        "language_model.model.layers.3.self_attn.rotary_emb.inv_freq",
        "language_model.model.rotary_emb.original_inv_freq",
        f"{LAYER}.self_attn.rotary_emb.cos_cached",
        "vision_model.embeddings.position_ids",
    ],
)
def test_buffers_that_the_published_code_computes_are_harmless(directory: Path, name: str) -> None:
    change(directory, added(**{name: (4,)}))
    check(directory)


@pytest.mark.parametrize(
    ("section", "values", "unread"),
    [
        ("llm_config", {"num_hidden_layers": 3}, "language_model.model.layers.3.attention.wo.weight"),
        ("vision_config", {"num_hidden_layers": 1}, "vision_model.encoder.layers.1.attn.proj.bias"),
        ("vision_config", {"qkv_bias": False}, "vision_model.encoder.layers.0.attn.qkv.bias"),
        ("vision_config", {"norm_type": "rms_norm"}, "vision_model.encoder.layers.0.norm1.bias"),
    ],
)
def test_a_configuration_of_less(directory: Path, section: str, values: dict[str, Any], unread: str) -> None:
    configure(directory, section, **values)
    with pytest.raises(CheckpointError, match=rf"tensor {unread} of {directory} and \d+ more are no part of what its"):
        check(directory)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"{LAYER}.attention.wqkv.bias", "bias of .* is no part of what its config.json describes"),
        ("something", "tensor something of .* is no part"),
        ("vision_model.rotary_emb.weight", "is no part"),
        (f"{LAYER}.attention.wqkv.lora_A.weight", "holds a LoRA adapter .*; merge it into its base"),
        ("base_model.model.language_model.model.norm.weight", "holds a LoRA adapter"),
        (f"{LAYER}.attention.wqkv.base_layer.weight", "holds a LoRA adapter"),
        (f"{LAYER}.attention.wqkv.qweight", "holds weights that are quantized already .*GPTQ"),
        (f"{LAYER}.attention.wqkv.scales", "holds weights that are quantized already"),
        (f"{LAYER}.attention.wqkv.weight.absmax", "holds weights that are quantized already"),
        (f"{LAYER}.attention.wqkv.weight_scale_inv", "holds weights that are quantized already"),
        (f"module.{EMBEDDING}", r"a wrapper around the trained model does \(module\. in"),
        (f"_orig_mod.{EMBEDDING}", r"a wrapper around the trained model does \(_orig_mod\. in"),
    ],
)
def test_a_tensor_that_nothing_reads(directory: Path, name: str, sentence: str) -> None:
    change(directory, added(**{name: (3,)}))
    with pytest.raises(CheckpointError, match=sentence) as raised:
        check(directory)
    assert str(directory) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod."])
def test_all_names_of_another_make(directory: Path, prefix: str) -> None:
    """It is said what they are, not that a tensor is missing."""
    change(directory, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=r"wrapper around|LoRA adapter"):
        check(directory)


def test_quantized_in_the_place_of_weights(directory: Path) -> None:
    def quantize(tensors: Tensors) -> Tensors:
        return {name.replace("wqkv.weight", "wqkv.qweight"): tensor for name, tensor in tensors.items()}

    change(directory, quantize)
    with pytest.raises(CheckpointError, match="quantized already"):
        check(directory)


@pytest.mark.parametrize("values", [{"quantization_config": {"quant_method": "gptq", "bits": 4}}])
def test_a_configuration_of_quantized_weights(directory: Path, values: dict[str, Any]) -> None:
    configure(directory, "llm_config", **values)
    with pytest.raises(CheckpointError, match="quantized already; give the checkpoint that they were made from"):
        check(directory)


def test_an_adapter_alone(tmp_path: Path) -> None:
    save_file({"base_model.model.x.lora_A.weight": np.zeros(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter \(adapter_model.safetensors\) without its base"):
        Checkpoint(tmp_path)


def test_a_missing_head_is_called_one(directory: Path) -> None:
    change(directory, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != HEAD})
    with pytest.raises(CheckpointError, match=rf"tensor {HEAD}, the output head, is missing .*set tie_word_embeddings"):
        check(directory)
    configure(directory, "llm_config", tie_word_embeddings=True)
    check(directory)


@pytest.mark.parametrize("compared_bytes", [1, 8 * 64 * 7, 1 << 24])
def test_a_tied_head_is_compared(directory: Path, monkeypatch: pytest.MonkeyPatch, compared_bytes: int) -> None:
    monkeypatch.setattr(checkpoint_names, "COMPARED_BYTES", compared_bytes)
    configure(directory, "llm_config", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=rf"{HEAD} of {directory} differs from {EMBEDDING}, though"):
        check(directory)
    change(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING]}))
    check(directory)

    def differ(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[HEAD].copy()
        tensors[HEAD][-1, -1] += 1

    change(directory, differ)
    with pytest.raises(CheckpointError, match="differs from"):
        check(directory)


def test_a_tied_head_of_another_shape(directory: Path) -> None:
    configure(directory, "llm_config", tie_word_embeddings=True)
    change(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING][:-1]}))
    with pytest.raises(CheckpointError, match=rf"{HEAD} of .* has shape"):
        check(directory)


def test_weights_of_a_kind_that_is_not_read(directory: Path) -> None:
    change(directory, lambda tensors: tensors.update({HEAD: tensors[HEAD].astype(np.int8)}))
    with pytest.raises(CheckpointError, match=rf"tensor {HEAD} of .* is stored as I8"):
        check(directory)
