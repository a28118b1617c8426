"""SigLIP with LLaVA's projector: compiled for TensorRT-RTX, and in int8 on ONNX Runtime."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig
from engine.dims import Limits
from engine.model_config import AnyResolutionConfig, SiglipConfig
from engine.runtime.pipeline import SglPipeline
from engine.target import Precision
from tests.builder.plans import compile_vision, num_fused
from tests.saved_llava_onevision import save
from tests.whole import check_int8

LIMITS = Limits(max_tokens=64, max_batch=1, max_tiles=7, planned=True)
TINY = SiglipConfig(
    image_size=30,
    patch_size=7,
    hidden_size=48,
    num_layers=2,
    num_heads=3,
    intermediate_size=96,
    norm_eps=1e-6,
    output_size=40,
)


@pytest.mark.parametrize("config", [TINY, replace(TINY, hidden_size=216)], ids=["heads of 16", "heads of 72"])
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
def test_a_plan_fuses_its_attention(config: SiglipConfig, precision: Precision, tmp_path: Path) -> None:
    """72 is the published size."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    assert num_fused(compile_vision(tmp_path, config, LIMITS, precision), 0) == config.num_layers


def test_int8_engines_answer_alone_as_together(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    save(directory)
    check_int8(directory, tmp_path)


def test_most_tiles_of_a_build(tmp_path: Path) -> None:
    """Canvases of more are left out, as by a checkpoint that names none."""
    directory = tmp_path / "checkpoint"
    save(directory)
    build_pair(BuildConfig(directory, directory, tmp_path / "engine", max_tokens=256, max_tiles=3, prune_layers=(2,)))
    model = SglPipeline.load(tmp_path / "engine", threads=1).large
    assert model.config.tiling == AnyResolutionConfig(((1, 1), (1, 2), (1, 3), (2, 1), (3, 1)), 3)
    pieces = model.look([Image.new("RGB", (90, 90))], "?", 4).pieces[0]
    assert len(pieces.pixels) == 2
