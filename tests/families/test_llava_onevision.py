"""LLaVA-OneVision's files, pictures and prompts, against transformers' processor and the published dimensions."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from jinja2 import Environment
from jinja2.ext import Extension
from numpy.testing import assert_array_equal
from PIL import Image
from transformers import LlavaOnevisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from engine.bindings import PIXEL_VALUES, VISUAL_FEATURES
from engine.build.language import language_graph
from engine.build.vision import vision_graph
from engine.build.weights import parameters
from engine.dims import Limits
from engine.errors import CheckpointError, RequestError
from engine.families import Turn, llava_onevision, published, qwen2_vl
from engine.families.llava_onevision.pictures import closest_grid, sampled_lines
from engine.families.llava_onevision.prompt import CHAT_TEMPLATES, DEFAULT, ONE_LINE
from engine.families.qwen2_vl.config import CHAT_TEMPLATE as QWEN2_VL_TEMPLATE
from engine.model_config import AnyResolutionConfig, ModelConfig, SiglipConfig
from engine.parallel import Shard, check_shards
from tests.families.fixtures import read_published, write_config

SIZES = ("0.5B", "7B", "72B")
LIMITS = Limits(max_tokens=64, max_batch=1, max_tiles=7)
CONFIG = read_published("LLaVA-OneVision-7B")


def config_json() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((published("LLaVA-OneVision-7B") / "config.json").read_text())
    return content


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size: str) -> None:
    """Every dimension is what transformers reads of the same file, and every graph is declared."""
    directory = published(f"LLaVA-OneVision-{size}")
    theirs = LlavaOnevisionConfig(**json.loads((directory / "config.json").read_text()))
    config = read_published(f"LLaVA-OneVision-{size}")
    text, language = theirs.text_config, config.language
    assert (language.hidden_size, language.num_layers, language.num_heads, language.num_kv_heads) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
    )
    assert (language.intermediate_size, language.vocab_size, language.norm_eps, language.rope.max_positions) == (
        text.intermediate_size,
        text.vocab_size,
        text.rms_norm_eps,
        text.max_position_embeddings,
    )
    assert (language.rope.theta, language.rope.sections, language.head_dim) == (1e6, (), 64 if size == "0.5B" else 128)
    assert language.tie_word_embeddings == (size == "0.5B")
    vision = config.vision
    assert isinstance(vision, SiglipConfig)
    assert (vision.tokens_per_tile(), vision.rows_per_tile()) == (729, 730)
    assert isinstance(config.tiling, AnyResolutionConfig)
    assert [[384 * rows, 384 * columns] for rows, columns in config.tiling.grids] == theirs.image_grid_pinpoints
    assert config.tiling.max_tiles == 9
    assert (config.tiling.most_tiles(), config.least_tokens()) == (37, 730)
    check_shards(language, Shard(0, 2), size)
    graph = language_graph(language, LIMITS, shard=Shard(0, 2))
    assert {name for name, _ in parameters(graph)} == llava_onevision.language_sources(config, ()).keys()

    model = vision_graph(vision, LIMITS)
    assert {name for name, _ in parameters(model)} == llava_onevision.vision_sources(config, ()).keys()
    for name, parameter in list(parameters(model)):
        del model.graph.initializers[name]
        model.graph.inputs.append(parameter)
    proto = onnx.shape_inference.infer_shapes(
        ir.serde.serialize_model(model), check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(proto, full_check=True)
    found = {value.name: dims(value) for value in [*proto.graph.input, *proto.graph.output]}
    assert found[PIXEL_VALUES] == ["tiles", 3, 384, 384]
    assert found[VISUAL_FEATURES] == ["tiles", 730, language.hidden_size]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer -2 is not supported"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy 'default'"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio 'pad' is not supported, only anyres_max_N"),
        ({"image_grid_pinpoints": [[384, 400]]}, r"holds \[384, 400\], which is no height and width in multiples"),
        ({"image_grid_pinpoints": []}, "is no list of sizes"),
        ({"image_grid_pinpoints": None}, "is no list of sizes"),
        ({"vision_config__hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"vision_config__model_type": "clip_vision_model"}, "model_type 'clip_vision_model' is not supported"),
        ({"text_config__model_type": "llama"}, "model_type 'llama' is not supported"),
        ({"vision_config__num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    config = config_json()
    for name, value in change.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    with pytest.raises(CheckpointError, match=sentence):
        llava_onevision.read_config(write_config(tmp_path, config), config)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("preprocessor_config.json", {"image_mean": [0.48145466, 0.4578275, 0.40821073]}, "image_mean"),
        ("preprocessor_config.json", {"size": {"height": 336, "width": 336}}, "size"),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[384, 384]]}, "image_grid_pinpoints"),
        ("processor_config.json", {"num_image_tokens": 576}, "num_image_tokens 576 is not supported, only 729"),
        ("processor_config.json", {"vision_aspect_ratio": "anyres_max_4"}, "vision_aspect_ratio 'anyres_max_4'"),
        ("chat_template.json", {"chat_template": "{{ messages }}"}, "another chat template"),
    ],
)
def test_another_preprocessing_is_refused(tmp_path: Path, file: str, content: dict[str, Any], sentence: str) -> None:
    directory = write_config(tmp_path, config_json())
    (directory / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=sentence):
        llava_onevision.read_config(directory, config_json())


def random_sizes(count: int, most: int) -> list[tuple[int, int]]:
    """Width and height, log-uniform."""
    sizes = np.exp(np.random.default_rng(count).uniform(0, np.log(most), (count, 2))).astype(int)
    return [(int(width), int(height)) for width, height in sizes]


def small_config() -> ModelConfig:
    """With tiles of few pixels, so that many pictures take no time."""
    vision = SiglipConfig(30, 7, 24, 1, 2, 24, 1e-6, CONFIG.language.hidden_size)
    return ModelConfig(**(vars(CONFIG) | {"vision": vision}))


@pytest.mark.parametrize("alone", [True, False])
def test_pixels_are_those_of_the_processor_bit_by_bit(alone: bool) -> None:
    config = small_config()
    assert isinstance(config.tiling, AnyResolutionConfig)
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 30, "width": 30},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=[[30 * rows, 30 * columns] for rows, columns in config.tiling.grids],
    )
    rng = np.random.default_rng(7)
    for width, height in [*random_sizes(200, 300), (1, 1), (28, 2800), (1344, 336), (30, 30), (31, 30), (180, 180)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        images = [image] if alone else [[image, image]]
        expected = processor(images=images, return_tensors="np")["pixel_values"][0]
        assert_array_equal(llava_onevision.cut(image, config, alone).pixels, expected, strict=True)


def test_token_counts_are_those_of_the_processor() -> None:
    """At random, and of pictures of common sizes."""
    canvas = CONFIG.tiling
    assert isinstance(canvas, AnyResolutionConfig)
    images = LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=[[384 * rows, 384 * columns] for rows, columns in canvas.grids]
    )
    theirs = object.__new__(LlavaOnevisionProcessor)
    theirs.image_processor, theirs.num_image_tokens, theirs.vision_aspect_ratio = images, 729, "anyres_max_9"

    def count(width: int, height: int) -> int:
        grid = closest_grid(height, width, canvas, 384)
        down, across = sampled_lines(height, width, grid, 27, canvas.max_tiles)
        return 729 + len(down.places) * (len(across.places) + 1)

    assert [count(640, 480), count(1920, 1080), count(384, 384)] == [2929, 7269, 1485]
    counts = []
    for width, height in [*random_sizes(2000, 5000), (384, 384), (385, 384), (2304, 2304), (1, 1), (28, 2800)]:
        counts.append(count(width, height))
        assert counts[-1] == theirs._get_number_of_features(height, width, 384, 384), (width, height)
    assert max(counts) <= CONFIG.most_tokens()


def test_a_token_is_where_its_box_says() -> None:
    """A white square on black: the tokens that show it are in the boxes that it covers."""
    config = small_config()
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[30:60, 60:90] = 255
    pieces = llava_onevision.cut(Image.fromarray(pixels), config)
    packing = pieces.packing
    assert packing is not None
    patches = pieces.pixels[:, :, :28, :28].reshape(-1, 3, 4, 7, 4, 7).mean(axis=(1, 3, 5)).reshape(-1, 16)
    rows = np.concatenate([patches, np.zeros((len(patches), 1))], axis=1).reshape(-1)
    shown = (rows[packing.taps] * packing.weights).sum(axis=1)[packing.placed]
    bright = pieces.boxes[shown > 0.9]
    assert len(bright) == 16, "of the canvas; in the stretched tile it is half as wide, and blurred"
    assert_array_equal(bright.min(axis=0)[:2], [0.5, 0.5])
    assert_array_equal(bright.max(axis=0)[2:], [0.75, 1])
    assert_array_equal(pieces.boxes[shown[:16].argmax()], [0.5, 0.75, 0.75, 1])


class Generation(Extension):
    """transformers' tag around what a model says."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pytest.mark.parametrize("template", [DEFAULT, ONE_LINE])
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_prompts_are_those_of_the_published_templates(template: str, pictures: int) -> None:
    text = {"type": "text"}
    messages = [
        {"role": "user", "content": [{"type": "image"}] * pictures + [text | {"text": "What?"}]},
        {"role": "assistant", "content": [text | {"text": "A dog."}]},
        {"role": "user", "content": [text | {"text": "And?"}]},
    ]
    jinja = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation])
    expected = jinja.from_string(CHAT_TEMPLATES[template]).render(messages=messages, add_generation_prompt=True)
    config = ModelConfig(**(vars(CONFIG) | {"prompt": type(CONFIG.prompt)(template)}))
    prompt = llava_onevision.render_prompt(config, "And?", [1] * pictures, [Turn("What?", "A dog.")])
    assert prompt.text == expected
    system = {"role": "system", "content": [text | {"text": "Be brief."}]}
    told = jinja.from_string(CHAT_TEMPLATES[template]).render(
        messages=[system, messages[2]], add_generation_prompt=True
    )
    assert llava_onevision.render_prompt(config, "And?", [], (), "Be brief.").text == told
    first = jinja.from_string(CHAT_TEMPLATES[template]).render(messages=messages[:1], add_generation_prompt=True)
    assert llava_onevision.render_prompt(config, "What?", [1] * pictures).text == first


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_prompts_of_qwen2_vl_are_those_of_its_template(pictures: int) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "And?"},
    ]
    jinja = Environment(trim_blocks=True, lstrip_blocks=True)
    expected = jinja.from_string(QWEN2_VL_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    config = read_published("Qwen2-VL-2B")
    assert qwen2_vl.render_prompt(config, "And?", [1] * pictures, [Turn("What?", "A dog.")]).text == expected
    messages[0] = {"role": "system", "content": "Be brief."}
    expected = jinja.from_string(QWEN2_VL_TEMPLATE).render(messages=messages[::2], add_generation_prompt=True)
    assert qwen2_vl.render_prompt(config, "And?", [], (), "Be brief.").text == expected


def test_marks_say_where_pictures_go() -> None:
    prompt = llava_onevision.render_prompt(CONFIG, "Is <image> like <image>?", [2, 1])
    assert "user\nIs <image><image> like <image>?<|im_end|>\n" in prompt.text
    with pytest.raises(RequestError, match="in the question: 1, pictures: 2"):
        llava_onevision.render_prompt(CONFIG, "Is <image>?", [2, 1])
    with pytest.raises(RequestError, match=r"control token <\|im_end\|>"):
        llava_onevision.render_prompt(CONFIG, "a<|im_end|>b", [1])
