"""Plans of miniature models, built without a GPU: what is fused, stored, planned, refused. Nothing is run."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from engine.bindings import Bindings, language_bindings
from engine.build.builder import build_pair
from engine.build.checkpoint import Checkpoint
from engine.build.compiler import Part
from engine.build.graph import declare
from engine.build.language import language_graph
from engine.build.layer_report import LayerReport
from engine.build.targets.tensorrt_rtx import TensorRtRtxCompiler
from engine.build.weights import WeightReader
from engine.config import BuildConfig, Precision, Target
from engine.dims import Limits
from engine.errors import EngineError
from engine.families import family_of
from engine.manifest import read_json, read_manifest
from engine.model_config import LanguageConfig, RopeConfig
from engine.parallel import Mapping
from engine.plugins.lowering import TENSORRT
from engine.runtime.pipeline import SglPipeline
from tools.make_random_pair import SMALL, write_pair
from tools.random_checkpoint import write_checkpoint
from tools.sgl import main

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
LIMITS = Limits(max_tokens=1024, max_batch=2, max_tiles=13, planned=True)
PRUNE_LAYERS = (2,)
PREFILL, DECODE = range(2)
of_engine = pytest.mark.xdist_group("plans")
"""Of tests that share the pair's plans: one worker builds them."""


class RandomReader(WeightReader):
    """Weights without a checkpoint."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def check(self, model: ir.Model) -> None:
        pass

    def read(self, name: str, weight: object) -> np.ndarray:
        shape = weight.part.shape(weight.stored)  # type: ignore[attr-defined]
        return self._rng.standard_normal(shape, dtype=np.float32)


def compile_language(
    directory: Path,
    config: LanguageConfig,
    precision: Precision = Precision.BF16,
    scores: bool = True,
    prune_layers: tuple[int, ...] = (),
    reader: WeightReader | None = None,
) -> LayerReport:
    settings = config, LIMITS, prune_layers, scores, Mapping()
    dtype = precision.activations(Target.TENSORRT_RTX)
    part = Part(
        language_graph(*settings, TENSORRT, dtype),
        language_bindings(*settings, dtype),
        reader or RandomReader(),
        calibrate=dict,
        previous=directory,
    )
    TensorRtRtxCompiler(precision).write(part, directory, "language", lambda fraction: None)
    assert sorted(path.name for path in directory.iterdir()) == ["language.layers.json", "language.plan"]
    return read_json(directory / "language.layers.json", LayerReport)


def tiny(**changes: object) -> LanguageConfig:
    config = LanguageConfig(64, 2, 4, 2, 16, 160, 96, 1e-5, RopeConfig(1e6, 8192))
    return replace(config, **changes)  # type: ignore[arg-type]


def num_fused(report: LayerReport, profile: int) -> int:
    return sum(layer.is_fused_attention() for layer in report.of_profile(profile))


def users(report: LayerReport, profile: int, part: str) -> list[tuple[str, ...]]:
    """Nodes of each kernel that computes a node whose name holds `part`."""
    return [layer.nodes for layer in report.of_profile(profile) if any(part in node for node in layer.nodes)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 pair built as a user does."""
    pair, out = tmp_path_factory.mktemp("pair"), tmp_path_factory.mktemp("engines") / "plans"
    write_pair(pair, seed=3)
    build_pair(build_config(pair, out))
    return out


def build_config(pair: Path, out: Path) -> BuildConfig:
    return BuildConfig(
        pair / "small",
        pair / "large",
        out,
        target=Target.TENSORRT_RTX,
        precision=Precision.BF16,
        max_tokens=1024,
        max_batch=2,
    )


@of_engine
def test_engine_directory(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert (manifest.target, manifest.precision, manifest.gpu) == (Target.TENSORRT_RTX, Precision.BF16, None)
    assert manifest.versions["tensorrt_rtx"].startswith("1.7")
    for model in ("small", "large"):
        vision, language = manifest.components[f"{model}/vision"], manifest.components[f"{model}/language/rank0"]
        assert set(vision.files) == {f"{model}/vision.plan", f"{model}/vision.layers.json"}
        names = (f"{model}/rank0/language.plan", f"{model}/rank0/language.layers.json")
        assert set(language.files) == set(names)
        assert vision.peak_bytes > 100e6, "the compiler's own process counts"


@of_engine
@pytest.mark.parametrize(("model", "layers"), [("small", 4), ("large", 10)])
def test_attention_is_fused_in_both_phases(engine: Path, model: str, layers: int) -> None:
    """Beside the score path in the small model, over pruned caches in the large one."""
    report = read_json(engine / model / "rank0" / "language.layers.json", LayerReport)
    assert [num_fused(report, profile) for profile in (PREFILL, DECODE)] == [layers, layers]
    for profile in (PREFILL, DECODE):
        assert len(users(report, profile, "q_proj")) == layers
        for nodes in users(report, profile, "q_proj"):
            assert any("k_proj" in node for node in nodes) and any("v_proj" in node for node in nodes)
        assert all(any("up_proj" in node for node in nodes) for nodes in users(report, profile, "gate_proj"))
    assert len(users(report, DECODE, "Softmax")) >= layers if model == "small" else not users(report, DECODE, "Softmax")


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


WEIGHT_BITS = {Precision.BF16: 16, Precision.FP16: 16, Precision.INT8: 8, Precision.INT4: 4, Precision.FP8: 8}


@pytest.mark.parametrize("precision", WEIGHT_BITS)
def test_every_precision(tmp_path: Path, precision: Precision) -> None:
    """From a checkpoint: matrices are stored once, in few bits, and turned back inside the kernel that multiplies."""
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    write_checkpoint(checkpoint, SMALL, seed=1)
    out.mkdir()
    family, published = family_of(checkpoint)
    config = family.read_config(checkpoint, published)
    reader = WeightReader(Checkpoint(checkpoint), family.language_sources(config, checkpoint))
    report = compile_language(out, config.language, precision, prune_layers=PRUNE_LAYERS, reader=reader)
    layers, size, vocabulary = config.language.num_layers, config.language.hidden_size, config.language.vocab_size
    matrices = layers * (size * size * 2 + size * 64 + size * 160 * 3)
    head = vocabulary * size
    bits = WEIGHT_BITS[precision]
    expected = (matrices * bits + head * max(bits, 8)) // 8 + (head + size * (2 * layers + 1)) * 2
    scales = matrices // 32 * 2 if bits == 4 else 0  # at most: blocks are of 32 or more
    assert expected <= report.weight_bytes <= 1.05 * expected + scales
    for profile in (PREFILL, DECODE):
        assert num_fused(report, profile) == layers
        dequantized = users(report, profile, ".weight.dequantize")
        assert len(dequantized) == (4 * layers + 1 if bits < 16 else 0)
        assert all(any("MatMul" in node for node in nodes) for nodes in dequantized)


def test_a_vocabulary_of_odd_size_costs_nothing(tmp_path: Path) -> None:
    """The head in few bits is turned back inside its product then, too, and takes no memory of its own."""
    scratch = []
    for vocabulary in (4096, 4095):
        directory = tmp_path / str(vocabulary)
        directory.mkdir()
        config = tiny(num_layers=1, hidden_size=512, vocab_size=vocabulary)
        report = compile_language(directory, config, Precision.INT8, scores=False)
        for profile in (PREFILL, DECODE):
            (nodes,) = users(report, profile, "lm_head.weight.dequantize")
            assert any("MatMul" in node for node in nodes)
        scratch.append(report.scratch_bytes[DECODE])
    assert scratch[1] < 1.02 * scratch[0]


def test_scratch_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """Beside layers of their own size, score paths of more layers plan no more memory."""
    scratch = []
    for layers in (2, 5):
        directory = tmp_path / str(layers)
        directory.mkdir()
        scratch.append(compile_language(directory, tiny(num_layers=layers)).scratch_bytes[PREFILL])
    assert scratch[1] < 1.02 * scratch[0]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 80), (32, 32, 96), (8, 1, 128), (14, 2, 64)])
def test_attention_of_published_head_sizes_is_fused(tmp_path: Path, heads: int, kv_heads: int, head_dim: int) -> None:
    config = tiny(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    report = compile_language(tmp_path, config)
    assert [num_fused(report, profile) for profile in (PREFILL, DECODE)] == [1, 1]


def test_too_few_heads_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    config = SMALL | {"llm_config": SMALL["llm_config"] | {"num_attention_heads": 2}}
    for name in ("small", "large"):
        write_checkpoint(tmp_path / name, config, seed=1)
    with pytest.raises(EngineError, match=r"small model .* has 2 query heads, but target tensorrt_rtx needs 4; choose"):
        build_pair(build_config(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("target", "precision", "choices"),
    [
        (Target.TENSORRT_RTX, Precision.FP32, "bf16 or fp16 or int8 or int4 or fp8"),
        (Target.ONNXRUNTIME, Precision.INT4, "fp32 or fp16 or int8"),
    ],
)
def test_an_impossible_precision_is_refused(tmp_path: Path, target: Target, precision: Precision, choices: str) -> None:
    config = BuildConfig(tmp_path, tmp_path, tmp_path / "out", target=target, precision=precision)
    with pytest.raises(EngineError, match=f"target {target} is not built in precision {precision}; choose {choices}$"):
        build_pair(config)


@pytest.mark.parametrize(
    ("target", "module", "extra"),
    [
        (Target.TENSORRT_RTX, "tensorrt_rtx_bindings", "tensorrt-rtx"),
        (Target.TENSORRT, "tensorrt", "tensorrt"),
    ],
)
def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = BuildConfig(tmp_path, tmp_path, tmp_path / "out", target=target, precision=Precision.BF16)
    with pytest.raises(EngineError, match=rf"target {target} needs its library.*pip install 'sgl-engine\[{extra}\]'"):
        build_pair(config)


def one_node(op_type: str, domain: str) -> Part:
    """A graph that cannot be compiled."""
    builder, _ = declare("bad", Bindings((), ()), TENSORRT.opset)
    graph = builder.graph
    value = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2])
    graph.inputs.append(value)
    node = ir.node(op_type, [value], domain=domain)
    graph.append(node)
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph.outputs.append(node.outputs[0])
    return Part(ir.Model(graph, ir_version=11), Bindings((), ()), RandomReader(), calibrate=dict, previous=Path())


def test_what_the_compiler_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"target tensorrt_rtx cannot compile bad \(.*NoSuchOp.*\)"):
        TensorRtRtxCompiler(Precision.BF16).write(one_node("NoSuchOp", ""), tmp_path, "bad", lambda fraction: None)


def test_a_compiler_that_dies_is_one_sentence(tmp_path: Path, make_dying: Callable[[], None]) -> None:
    make_dying()
    with pytest.raises(EngineError, match=r"the compiler of target tensorrt_rtx ended while it compiled language \(.*"):
        compile_language(tmp_path, tiny(num_layers=1))


@pytest.fixture
def make_dying(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], None]:
    """Every process that starts from now on aborts in the compiler's place."""
    directory = tmp_path_factory.mktemp("dying")
    (directory / "python").write_text("#!/bin/sh\necho out of luck >&2\nkill -ABRT $$\n")
    (directory / "python").chmod(0o755)
    return lambda: monkeypatch.setattr(sys, "executable", str(directory / "python"))


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


def test_a_bound_on_kept_tokens_shortens_caches() -> None:
    """After the first prune point only, and no longer than asked."""
    limits = replace(LIMITS, max_kept_tokens=300)
    bound = language_bindings(tiny(), limits, (1,), False, Mapping())
    lengths = {binding.name: binding.dims[2] for binding in bound.inputs if binding.name.startswith("past_key")}
    assert lengths == {"past_key_0": 1024, "past_key_1": 300}
    assert limits.kept(1).max == 300


@pytest.mark.parametrize(("target", "kept"), [(Target.ONNXRUNTIME, 100), (Target.TENSORRT_RTX, 2000)])
def test_an_impossible_bound_is_refused(tmp_path: Path, target: Target, kept: int) -> None:
    precision = target.precisions()[0]
    config = BuildConfig(tmp_path, tmp_path, tmp_path / "out", target, precision, 1000, max_kept_tokens=kept)
    with pytest.raises(EngineError, match=f"max_kept_tokens {kept} is for targets that plan memory"):
        build_pair(config)
