"""Qwen2-VL's ViT: declared for every published size, compiled for TensorRT-RTX, and in int8 on ONNX Runtime."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.bindings import (
    PATCH_COS,
    PATCH_SIN,
    PATCHES,
    VISUAL_FEATURES,
    WINDOW_MASK,
    WINDOW_PATCH,
    WINDOW_PLACE,
)
from engine.build.vision import vision_graph
from engine.build.weights import parameters
from engine.dims import Limits
from engine.families import published_names
from engine.model_config import Norm, QwenVitConfig
from engine.target import Precision
from engine.towers.qwen2_vit import cut_patches, host_inputs, patch_places, window_inputs
from tests.builder.plans import compile_vision, num_fused, users
from tests.families.fixtures import read_published
from tests.saved_qwen2_vl import save
from tests.whole import check_int8

LIMITS = Limits(max_tokens=64, max_batch=1, max_tiles=1, max_picture_tokens=64)
TINY = QwenVitConfig(
    patch_size=4,
    frames=2,
    merged=2,
    hidden_size=48,
    num_layers=2,
    num_heads=3,
    intermediate_size=96,
    output_size=40,
)


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", [name for name in published_names() if name.startswith("Qwen2")])
def test_every_published_size_is_declared(name: str) -> None:
    """Shapes inferred from the patches agree with the bindings."""
    config = read_published(name)
    model = vision_graph(config.vision, LIMITS)
    for name, parameter in list(parameters(model)):
        del model.graph.initializers[name]
        model.graph.inputs.append(parameter)
    proto = onnx.shape_inference.infer_shapes(
        ir.serde.serialize_model(model), check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(proto, full_check=True)
    found = {value.name: dims(value) for value in [*proto.graph.input, *proto.graph.output]}
    assert found[PATCHES] == [1, "patches", 1176]
    assert found[PATCH_COS] == found[PATCH_SIN] == [1, "patches", 40]
    assert found[VISUAL_FEATURES] == [1, "picture_tokens", config.language.hidden_size]


def test_patches_and_their_places_are_in_the_order_of_the_tokens() -> None:
    """A picture whose pixels say where they are."""
    rows, columns, size = 3, 2, TINY.patch_size
    place = np.indices((rows * 8, columns * 8)) // size
    picture = np.stack([place[0], place[1], np.zeros_like(place[0])]).astype(np.float32)
    pixels = cut_patches(TINY, picture[None])
    assert pixels.shape == (1, rows, columns, 4, 3 * 2 * size * size)
    values = pixels.reshape(-1, 3, 2, size, size)
    assert (np.ptp(values, axis=(2, 3, 4)) == 0).all(), "a patch holds its own pixels, the same in both frames"
    np.testing.assert_array_equal(values[:, :2, 0, 0, 0], patch_places(TINY, rows, columns))
    token = patch_places(TINY, rows, columns).reshape(-1, 4, 2) // 2
    expected = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1)
    np.testing.assert_array_equal(token, np.repeat(expected[:, None], 4, axis=1))
    cos = host_inputs(TINY, pixels)[PATCH_COS]
    assert cos.shape == (1, rows * columns * 4, 8) and (cos[0, 0] == 1).all()


def test_patches_of_a_window_lie_together() -> None:
    """Those at the edge of a picture are fewer; every patch is found again where it went."""
    config = replace(TINY, window=3)
    place = patch_places(config, 4, 7)
    inputs = window_inputs(config, place)
    patch, mask, went = (inputs[name] for name in (WINDOW_PATCH, WINDOW_MASK, WINDOW_PLACE))
    assert patch.shape == (6, 36) and mask.shape == (6, 1, 1, 36)
    np.testing.assert_array_equal(patch.reshape(-1)[went], np.arange(len(place)))
    used = mask[:, 0, 0] == 0
    assert used.sum() == len(place) == 4 * 7 * 4
    for window, is_used in zip(patch, used, strict=True):
        assert len(np.unique(place[window[is_used]] // 6, axis=0)) == 1
    assert len({tuple(place[window[0]] // 6) for window in patch}) == 6


def test_a_plan_with_windows_is_compiled(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    config = replace(TINY, norm=Norm.RMS, is_gated=True, window=4, whole_layers=(1,))
    report = compile_vision(tmp_path, config, replace(LIMITS, planned=True, max_picture_tokens=4096), Precision.BF16)
    assert num_fused(report, 0) >= 1


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
def test_a_plan_fuses_its_attention(precision: Precision, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    limits = replace(LIMITS, planned=True, max_picture_tokens=4096)
    report = compile_vision(tmp_path, TINY, limits, precision)
    assert num_fused(report, 0) == TINY.num_layers
    dequantized = users(report, 0, ".weight.dequantize")
    assert bool(dequantized) == (precision is Precision.INT8)
    assert all(any("MatMul" in node for node in nodes) for nodes in dequantized), "weights are turned back in products"


def test_int8_engines_answer_alone_as_together(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    save(directory)
    check_int8(directory, tmp_path)
