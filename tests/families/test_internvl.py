"""Reading what transformers saved, in the forms of several of its versions, and refusing what is not computed."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.testing import assert_close
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

from engine.build.checkpoint import Checkpoint
from engine.build.read_role import check_weights, read_ends
from engine.build.tokenizer import read_tokenizer, write_tokenizer
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader, parameters
from engine.dims import Limits
from engine.errors import CheckpointError
from engine.families import family_of, internvl
from engine.model_config import ModelConfig, Norm, RopeScaling
from engine.runtime.tokenizer import Tokenizer
from tests.families.test_internvl2_config import JSON, leaves
from tests.saved_internvl import LARGE_VISION, Saved, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("saved"), "qwen2", LARGE_VISION)


def read(directory: Path, **changes: Any) -> ModelConfig:
    """The configuration with fields set, or removed when the value is `...`; `section__field` is inside a section."""
    family, config = family_of(directory)
    for path, value in changes.items():
        *sections, name = path.split("__")
        target = config
        for section in sections:
            target = target[section]
        if value is ...:
            target.pop(name, None)
        else:
            target[name] = value
    return family.read_config(directory, config)


def test_what_it_says(saved: Saved) -> None:
    config = read(saved.directory)
    language, vision = config.language, config.vision
    assert (config.family, config.tiling.max_tiles, config.tiling.thumbnail) == ("internvl", 4, True)
    assert (language.qkv_bias, language.qk_norm, language.tie_word_embeddings) == (True, False, False)
    assert (language.rope.scaling, language.rope.factor, language.rope.theta) == (RopeScaling.DYNAMIC_NTK, 2.0, 1e4)
    assert (vision.norm, vision.qk_norm, vision.qkv_bias, vision.grid()) == (Norm.RMS, True, False, 2)


def test_older_files_say_the_same(saved: Saved) -> None:
    """Before version 5: the base and the scaling of the rotary embedding apart, and no tie of the whole model."""
    older = {
        "text_config__rope_parameters": ...,
        "text_config__rope_theta": 10000.0,
        "text_config__rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "text_config__architectures": ["Qwen2ForCausalLM"],
        "vision_config__architectures": ["InternVisionModel"],
        "tie_word_embeddings": ...,
    }
    assert read(saved.directory, **older) == read(saved.directory)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_feature_layer", -2),
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "relu"),
        ("quantization_config", {"quant_method": "awq"}),
        ("text_config__model_type", "qwen3_moe"),
        ("text_config__hidden_act", "gelu"),
        ("text_config__rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        ("text_config__rope_parameters", {"rope_type": "default"}),
        ("vision_config__image_size", [56, 112]),
        ("vision_config__use_mean_pooling", False),
        ("vision_config__use_absolute_position_embeddings", False),
        ("vision_config__layer_norm_eps", 1e-5),
        ("vision_config__attention_bias", ...),
        ("vision_config__use_qk_norm", "yes"),
    ],
)
def test_refuses(saved: Saved, path: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        read(saved.directory, **{path: value})
    message = str(error.value)
    assert message.startswith(str(saved.directory / "config.json"))
    assert "\n" not in message
    field = path.rpartition("__")[2]
    assert ("type" if field == "rope_parameters" else field) in message or "rope_theta" in message


@given(data=st.data(), value=JSON | st.just(...))
def test_any_field_gives_a_configuration_or_a_checkpoint_error(saved: Saved, data: st.DataObject, value: Any) -> None:
    _, config = family_of(saved.directory)
    path = data.draw(st.sampled_from(leaves(config))).replace(".", "__")
    with suppress(CheckpointError):
        assert isinstance(read(saved.directory, **{path: value}), ModelConfig)


@pytest.mark.parametrize("inside", [False, True])
def test_tiles_are_those_of_the_processor(saved: Saved, tmp_path: Path, inside: bool) -> None:
    """Its image processor has a file of its own in older versions."""
    config = json.loads((saved.directory / "config.json").read_text())

    def tiles(**changes: Any) -> tuple[int, int]:
        image = json.loads((saved.directory / "preprocessor_config.json").read_text()) | changes
        processor = {"image_seq_length": 4} | ({"image_processor": image} if inside else {})
        (tmp_path / "processor_config.json").write_text(json.dumps(processor))
        if not inside:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
        tiling = internvl.read_config(tmp_path, config).tiling
        return tiling.min_tiles, tiling.max_tiles

    assert tiles(min_patches=2, max_patches=9) == (2, 9)
    for field, value in {
        "min_patches": 5,
        "size": {"height": 28, "width": 28},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [1, 1, 1],
        "resample": 2,
    }.items():
        with pytest.raises(CheckpointError, match=field):
            tiles(**{field: value})


def test_without_processor_files(saved: Saved, tmp_path: Path) -> None:
    config = json.loads((saved.directory / "config.json").read_text())
    tiling = internvl.read_config(tmp_path, config).tiling
    assert (tiling.min_tiles, tiling.max_tiles) == (1, 12)
    (tmp_path / "processor_config.json").write_text('{"image_seq_length": 256}')
    with pytest.raises(CheckpointError, match="image_seq_length 256 is not supported, only 4"):
        internvl.read_config(tmp_path, config)
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        internvl.read_config(tmp_path, config)


def test_tokenizer(saved: Saved, tmp_path: Path) -> None:
    write_tokenizer(saved.directory, tmp_path)
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat? 图片<|im_end|>\n"
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode(text) == saved.processor.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_of_its_own_counts(saved: Saved, tmp_path: Path, tied: bool) -> None:
    """As in transformers, which reads the same files here; configurations tie the whole model by default."""
    for file in saved.directory.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(saved.directory)
    if tied:
        del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    oracle = InternVLForConditionalGeneration.from_pretrained(tmp_path, local_files_only=True)
    source = internvl.language_sources(read(tmp_path), tensors)["lm_head.weight"]
    assert_close(oracle.lm_head.weight.data.numpy(), tensors[source.tensor])


def test_a_missing_or_misshapen_part_is_named(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved.directory / "config.json").read_bytes())
    name = "vision_tower.encoder.layer.1.attention.k_proj.weight"
    for replacement, message in ((None, f"tensor {name} is missing"), (np.zeros((24, 23), np.float32), name)):
        tensors = tensors_of(saved.directory)
        del tensors[name]
        save_file(tensors | ({} if replacement is None else {name: replacement}), tmp_path / "model.safetensors")
        family, _ = family_of(tmp_path)
        with pytest.raises(CheckpointError, match=message):
            check_weights(Checkpoint(tmp_path), family, read(tmp_path))


def test_every_tensor_is_read(saved: Saved) -> None:
    config, tensors = read(saved.directory), tensors_of(saved.directory)
    sources = internvl.language_sources(config, tensors) | internvl.vision_sources(config, tensors)
    assert sorted(tensor for source in sources.values() for tensor in source.tensors()) == sorted(tensors)


def test_joined_parts_follow_each_other(saved: Saved) -> None:
    config, tensors = read(saved.directory), tensors_of(saved.directory)
    checkpoint = Checkpoint(saved.directory)
    reader = WeightReader(checkpoint, internvl.vision_sources(config, tensors))
    weights = dict(parameters(vision_graph(config.vision, Limits(max_tokens=1, max_batch=1, max_tiles=1))))
    name = "encoder.layers.1.attn.qkv.weight"
    parts = [tensors[f"vision_tower.encoder.layer.1.attention.{part}_proj.weight"] for part in "qkv"]
    np.testing.assert_array_equal(reader.read(name, weights[name]), np.concatenate(parts).T)


# Text: hidden size, layers, heads, KV heads, intermediate size; whether the vision encoder is the large one.
INTERNVL3 = {
    "1B": (896, 24, 14, 2, 4864, False),
    "2B": (1536, 28, 12, 2, 8960, False),
    "8B": (3584, 28, 28, 4, 18944, False),
    "14B": (5120, 48, 40, 8, 13824, False),
    "38B": (5120, 64, 40, 8, 27648, True),
}


@pytest.mark.parametrize("size", INTERNVL3)
def test_tensors_of_published_sizes_fit(size: str, tmp_path: Path) -> None:
    """InternVL3's `-hf` checkpoints, as transformers declares them, have every parameter of our graphs."""
    hidden, layers, heads, kv_heads, inner, large = INTERNVL3[size]
    text = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=151674,
        tie_word_embeddings=False,
    )
    large_vision = {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800}
    large_vision |= {"norm_type": "rms_norm", "use_qk_norm": True}
    vision = InternVLVisionConfig(**(large_vision if large else {"attention_bias": True}))
    described = InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(described)
    described.architectures = [internvl.ARCHITECTURE]
    described.save_pretrained(tmp_path)
    config = read(tmp_path)
    checkpoint = Mock(Checkpoint, directory=tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    checkpoint.names.return_value = shapes
    expected: dict[str, tuple[int, ...]] = {}
    checkpoint.expect.side_effect = lambda name, shape: expected.update({name: tuple(shape)})
    check_weights(checkpoint, family_of(tmp_path)[0], config)
    assert expected == shapes
    assert (config.vision.tokens_per_tile(), config.tiling.most_tiles()) == (256, 13)


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_ends_of_answers(saved: Saved, tmp_path: Path) -> None:
    """`generation_config.json` adds stop tokens; what is no special token is said, and ends nothing."""
    for file in saved.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    family, config = family_of(tmp_path), read(tmp_path)
    library = read_tokenizer(tmp_path)
    special, known = library.token_to_id("</img>"), library.token_to_id("<|im_end|>")
    for value, stop, said in (
        (None, (), 0),
        (special, ("</img>",), 0),
        ([known, special, special], ("</img>",), 0),
        ([special, 5, 10**9], ("</img>",), 2),
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        settled, notes = read_ends(family[0], config, tmp_path)
        assert (settled.prompt.stop, len(notes)) == (stop, said)
        prompt = family[0].render_prompt(settled, "", ())
        assert prompt.stop == ("<|im_end|>", "<|endoftext|>", "</s>", *stop)
    assert "ends answers at token 5, which is no special token of the tokenizer; it ends none here" in notes[0]
    for value in (True, "2", [2.0], {"a": 1}, -1, [[2]], list(range(65))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id .* is no token"):
            read_ends(family[0], config, tmp_path)


def test_another_chat_template_is_refused(saved: Saved, tmp_path: Path) -> None:
    config = json.loads((saved.directory / "config.json").read_text())
    (tmp_path / "chat_template.jinja").write_text(saved.processor.chat_template)
    internvl.read_config(tmp_path, config)
    (tmp_path / "chat_template.jinja").write_text("You are a pirate." + saved.processor.chat_template)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja holds another chat template"):
        internvl.read_config(tmp_path, config)
