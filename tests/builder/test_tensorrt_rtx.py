"""Plans of a miniature pair, built without a GPU as a user does: what is fused, stored, shown. Nothing is run."""

import json
import re
from pathlib import Path

import pytest
import torch

from engine.build.builder import build_pair
from engine.build.layer_report import LayerReport
from engine.cli.__main__ import main
from engine.engine_directory import read_json, read_manifest
from engine.errors import EngineError
from engine.runtime.pipeline import SglPipeline
from engine.target import Precision, Target
from tests.builder.plans import (
    DECODE,
    PREFILL,
    build_config,
    num_fused,
    users,
)
from tools.make_random_pair import write_pair

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
of_engine = pytest.mark.xdist_group("plans")
"""Of tests that share the pair's plans: one worker builds them."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 pair built as a user does."""
    pair, out = tmp_path_factory.mktemp("pair"), tmp_path_factory.mktemp("engines") / "plans"
    write_pair(pair, seed=3)
    build_pair(build_config(pair, out))
    return out


@of_engine
def test_engine_directory(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert (manifest.target, manifest.precision, manifest.gpu) == (Target.TENSORRT_RTX, Precision.BF16, None)
    assert manifest.versions["tensorrt_rtx"].startswith("1.7")
    for model in ("small", "large"):
        vision, language = manifest.components[f"{model}/vision"], manifest.components[f"{model}/language/rank0"]
        assert set(vision.files) == {f"{model}/vision.plan", f"{model}/vision.layers.json"}
        names = ("language", "scoring") if model == "small" else ("language",)
        files = {f"{model}/rank0/{name}{suffix}" for name in names for suffix in (".plan", ".layers.json")}
        assert set(language.files) == files
        assert vision.peak_bytes > 100e6, "the compiler's own process counts"


@of_engine
@pytest.mark.parametrize(("model", "layers"), [("small", 4), ("large", 10)])
def test_attention_is_fused_in_both_phases(engine: Path, model: str, layers: int) -> None:
    """With queries for scores in the small model, over pruned caches in the large one."""
    report = read_json(engine / model / "rank0" / "language.layers.json", LayerReport)
    assert [num_fused(report, profile) for profile in (PREFILL, DECODE)] == [layers, layers]
    for profile in (PREFILL, DECODE):
        assert len(users(report, profile, "q_proj")) == layers
        for nodes in users(report, profile, "q_proj"):
            assert any("k_proj" in node for node in nodes) and any("v_proj" in node for node in nodes)
        assert all(any("up_proj" in node for node in nodes) for nodes in users(report, profile, "gate_proj"))
    assert not users(report, DECODE, "Softmax")


@of_engine
def test_scores_are_few_kernels(engine: Path) -> None:
    """One softmax, masked while it is computed, and one sum, for rows of a prompt and generated ones alike."""
    report = read_json(engine / "small" / "rank0" / "scoring.layers.json", LayerReport)
    assert len(report.scratch_bytes) == 1
    assert len(report.of_profile(PREFILL)) <= 8
    assert any(any("Where" in node for node in nodes) for nodes in users(report, PREFILL, "Softmax"))
    assert len(users(report, PREFILL, "ReduceSum")) <= 2


@of_engine
@pytest.mark.parametrize(("model", "layers"), [("small", 2), ("large", 3)])
def test_vision_is_fused(engine: Path, model: str, layers: int) -> None:
    report = read_json(engine / model / "vision.layers.json", LayerReport)
    assert len(report.scratch_bytes) == 1
    assert num_fused(report, 0) == layers
    assert all(any("fc1" in node for node in nodes) for nodes in users(report, 0, "mlp/Gelu"))


@of_engine
def test_building_again_is_a_cache_hit(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = tmp_path_factory.mktemp("again")
    write_pair(pair, seed=3)
    report = build_pair(build_config(pair, engine))
    assert report.built == ()
    assert len(report.cached) == 6


@of_engine
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_opening_it_on_a_cpu_says_what_is_needed(engine: Path) -> None:
    with pytest.raises(
        EngineError, match=r"target tensorrt_rtx, which needs an NVIDIA GPU.* --target onnxruntime"
    ) as no:
        SglPipeline.load(engine, threads=1)
    assert len(str(no.value).splitlines()) == 1


@of_engine
def test_info_names_a_missing_report(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = engine / "small" / "rank0" / "scoring.layers.json"
    content = report.read_bytes()
    report.unlink()
    try:
        assert main(["info", str(engine), "--layers"]) == 2
        assert re.search(rf"scoring\.layers\.json is missing; rebuild with .* --out {engine} ", capsys.readouterr().err)
    finally:
        report.write_bytes(content)


@of_engine
def test_info_shows_the_layers(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(engine), "--layers"]) == 0
    text = capsys.readouterr().out
    assert "layers      small/rank0/language" in text
    for part in ("4 of them fused attention", "gemv_mha", "layers.*.self_attn.q_proj (MatMul)", "of scratch memory"):
        assert part in text
    assert main(["info", str(engine), "--layers", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    report = content["layers"]["large/rank0/language.layers.json"]
    assert len(report["scratch_bytes"]) == 2 and report["layers"][0].keys() == {"name", "kind", "profile", "nodes"}
