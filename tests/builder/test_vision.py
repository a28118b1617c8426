"""The vision graph against transformers' InternVL, and its declaration for every published size."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from onnxscript import GraphBuilder
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config

from engine.bindings import PIXEL_VALUES, VISUAL_FEATURES
from engine.build.vision import vision_graph
from engine.build.weights import parameters
from engine.dims import Limits
from engine.families import internvl2
from engine.graphs.declaration import IR_VERSION
from engine.model_config import InternVitConfig, Norm
from engine.plugins.function import OPSET
from engine.towers.internvit.graph import pixel_shuffle
from tests.families.fixtures import SIZES, published, read_size
from tests.tiny_vision import TINY_VISION
from tests.tolerance import TOLERANCE
from tools.random_checkpoint import tensor_shapes

LIMITS = Limits(max_tokens=64, max_batch=1, max_tiles=7)
LARGE = replace(TINY_VISION, num_layers=3, norm=Norm.RMS, qkv_bias=False, qk_norm=True)
CONFIGS = {
    "300M": TINY_VISION,
    "300M, another epsilon": replace(TINY_VISION, norm_eps=1e-2),
    "6B": LARGE,
    "6B, one layer, one head": replace(LARGE, num_layers=1, num_heads=1),
    "one visual token": replace(TINY_VISION, image_size=14),
    "5 heads, 3x3 visual tokens": replace(LARGE, image_size=18, patch_size=3, hidden_size=35, num_heads=5),
    "squares of 4x4 patches": replace(TINY_VISION, image_size=56, downsample_ratio=0.25),
}


class Published:
    """transformers' InternVL with random weights, and those under the names and in the layout of a checkpoint.

    hidden: scales what is added to the hidden states, and the queries before their norm.
    """

    def __init__(self, config: InternVitConfig, hidden: float = 1.0) -> None:
        # The oracle's QK norm has a fixed epsilon.
        assert not config.qk_norm or config.norm_eps == 1e-6
        vision = InternVLVisionConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            attention_bias=config.qkv_bias,
            use_qk_norm=config.qk_norm,
            intermediate_size=config.intermediate_size,
            norm_type=str(config.norm),
            layer_norm_eps=config.norm_eps,
            image_size=config.image_size,
            patch_size=config.patch_size,
        )
        text = Qwen2Config(
            hidden_size=config.output_size,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            intermediate_size=8,
            vocab_size=8,
        )
        self.model = InternVLModel(
            InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=config.downsample_ratio)
        ).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                scaled = any(part in name for part in (".embeddings.", "lambda", "q_proj"))
                value = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.3 * (hidden if scaled else 1.0) * value)

    def tensors(self) -> dict[str, np.ndarray]:
        state = {name: value.numpy() for name, value in self.model.state_dict().items()}
        tensors = {
            "embeddings.class_embedding": state["vision_tower.embeddings.cls_token"],
            "embeddings.position_embedding": state["vision_tower.embeddings.position_embeddings"],
        }
        renamed = {"vision_tower.embeddings.patch_embeddings.projection": "embeddings.patch_embedding"}
        for ours, theirs in {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}.items():
            renamed[f"multi_modal_projector.{theirs}"] = f"mlp1.{ours}"
        for index in range(self.model.config.vision_config.num_hidden_layers):
            layer, prefix = f"vision_tower.encoder.layer.{index}", f"encoder.layers.{index}"
            tensors |= {f"{prefix}.ls{i}": state[f"{layer}.lambda_{i}"] for i in (1, 2)}
            for kind in ("weight", "bias"):
                if f"{layer}.attention.q_proj.{kind}" in state:
                    qkv = [state[f"{layer}.attention.{part}_proj.{kind}"] for part in "qkv"]
                    tensors[f"{prefix}.attn.qkv.{kind}"] = np.concatenate(qkv)
            renamed |= {
                f"{layer}.attention.projection_layer": f"{prefix}.attn.proj",
                f"{layer}.attention.q_norm": f"{prefix}.attn.q_norm",
                f"{layer}.attention.k_norm": f"{prefix}.attn.k_norm",
                f"{layer}.mlp.fc1": f"{prefix}.mlp.fc1",
                f"{layer}.mlp.fc2": f"{prefix}.mlp.fc2",
                f"{layer}.layernorm_before": f"{prefix}.norm1",
                f"{layer}.layernorm_after": f"{prefix}.norm2",
            }
        for name, value in state.items():
            module, _, kind = name.rpartition(".")
            if module in renamed:
                tensors[f"{renamed[module]}.{kind}"] = value
        return tensors

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """[N,3,H,W] -> [N,V,C]"""
        with torch.no_grad():
            outputs = self.model.get_image_features(
                torch.from_numpy(pixels), vision_feature_layer=-1, vision_feature_select_strategy="default"
            )
        return outputs.pooler_output.numpy()


def fill(model: ir.Model, tensors: dict[str, np.ndarray]) -> None:
    """Give every parameter its tensor, as the weight loader does."""
    assert {name for name, _ in parameters(model)} == tensors.keys()
    for name, parameter in parameters(model):
        assert tensors[name].shape == parameter.stored, name
        data = tensors[name].T if parameter.part.transpose else tensors[name]
        parameter.const_value = ir.tensor(np.ascontiguousarray(data), name=name)


def session(model: ir.Model, directory: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The model's first output of its only input."""
    ir.save(model, directory / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    loaded = onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda array: loaded.run(None, {loaded.get_inputs()[0].name: array})[0]


def random_tiles(config: InternVitConfig, tiles: int) -> np.ndarray:
    shape = (tiles, 3, config.image_size, config.image_size)
    return np.random.default_rng(tiles).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("hidden", [1.0, 1e-3], ids=["ordinary", "so small that epsilons count"])
def test_features_are_those_of_transformers(config: InternVitConfig, hidden: float, tmp_path: Path) -> None:
    oracle = Published(config, hidden)
    graph = vision_graph(config, LIMITS)
    fill(graph, oracle.tensors())
    run = session(graph, tmp_path)
    for tiles in (1, 5):
        pixels = random_tiles(config, tiles)
        expected = oracle.features(pixels)
        # Relative to the largest feature, because the weights decide how large any is.
        scale = np.abs(expected).max()
        assert_allclose(run(pixels) / scale, expected / scale, **TOLERANCE["op"])
    assert np.ptp(expected / scale, axis=(0, 1)).max() > 0.1, "features must differ from token to token"


def test_tiles_do_not_see_each_other(tmp_path: Path) -> None:
    """A runtime may feed the tiles of a picture in any portions."""
    graph = vision_graph(TINY_VISION, LIMITS)
    fill(graph, Published(TINY_VISION).tensors())
    run = session(graph, tmp_path)
    pixels = random_tiles(TINY_VISION, 7)
    portions = [run(pixels[:1]), run(pixels[1:3]), run(pixels[3:])]
    assert_allclose(np.concatenate(portions), run(pixels), **TOLERANCE["op"])


@pytest.mark.parametrize(("ratio", "patches"), [(0.5, 2), (0.5, 6), (0.25, 8), (1.0, 3)])
def test_pixel_shuffle_joins_neighbouring_patches(ratio: float, patches: int, tmp_path: Path) -> None:
    """Channels that hold a patch's row and column say which patches become one token, and in which order."""
    config = replace(TINY_VISION, image_size=7 * patches, hidden_size=4, num_heads=2, downsample_ratio=ratio)
    side, grid = patches // config.grid(), config.grid()
    row, column = np.divmod(np.arange(patches**2, dtype=np.float32), patches)
    tokens = np.stack([row, column, 100 + row, 100 + column], axis=-1)[None]

    builder = GraphBuilder(ir.Graph([], [], nodes=[], name="pixel_shuffle", opset_imports=OPSET))
    value = builder.input("tokens", dtype=ir.DataType.FLOAT, shape=ir.Shape(["tiles", patches**2, 4]))
    builder.add_output(pixel_shuffle(builder.op, value, config), "shuffled")
    actual = session(ir.Model(builder.graph, ir_version=IR_VERSION), tmp_path)(tokens)

    squares = torch.from_numpy(tokens).reshape(1, patches, patches, 4)
    expected = Published(config).model.pixel_shuffle(squares, scale_factor=ratio)
    assert_array_equal(actual, expected.reshape(1, grid**2, -1))
    for token, vector in enumerate(actual[0]):
        square = vector.reshape(side * side, 4)[:, :2]
        corner = np.array(divmod(token, grid)) * side
        assert_array_equal(square, corner + [divmod(patch, side) for patch in range(side * side)])


@pytest.mark.parametrize("size", SIZES)
def test_every_published_size_is_declared(size: str) -> None:
    """Parameters are the checkpoint's tensors, and shapes inferred from the pixels agree with the bindings."""
    config = read_size(size)
    model = vision_graph(config.vision, LIMITS)
    shapes = tensor_shapes(published(size))
    sources = internvl2.vision_sources(config, shapes)
    assert {name: parameter.stored for name, parameter in parameters(model)} == {
        name: shapes[source.tensor] for name, source in sources.items()
    }

    # Without data a parameter passes as an input; declared outputs are forgotten and inferred anew.
    for name, parameter in list(parameters(model)):
        del model.graph.initializers[name]
        model.graph.inputs.append(parameter)
    for node in model.graph:
        if node.domain == "":
            for output in node.outputs:
                output.shape = None
    proto = onnx.shape_inference.infer_shapes(
        ir.serde.serialize_model(model), check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(proto, full_check=True)
    features, pixels = proto.graph.output[0], proto.graph.input[0]
    assert (pixels.name, dims(pixels)) == (PIXEL_VALUES, ["tiles", 3, 448, 448])
    assert (features.name, dims(features)) == (VISUAL_FEATURES, ["tiles", 256, config.language.hidden_size])


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
