"""What cannot be built for TensorRT-RTX, or by its compiler, ends in one sentence."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from engine.bindings import Bindings, Scoring, language_bindings
from engine.build.builder import build_pair
from engine.build.compiler import DeclaredEngine
from engine.build.targets.tensorrt_rtx import TensorRtRtxCompiler
from engine.config import BuildConfig
from engine.errors import EngineError
from engine.graphs.declaration import declare
from engine.parallel import Shard
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.target import Precision, Target
from tests.builder.plans import (
    LIMITS,
    RandomReader,
    build_config,
    compile_language,
    tiny,
)
from tools.make_random_pair import SMALL
from tools.random_checkpoint import write_checkpoint

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")


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
        (Target.ONNXRUNTIME, Precision.FP8, "fp32 or fp16 or int8 or int4"),
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


def one_node(op_type: str, domain: str) -> DeclaredEngine:
    """A graph that cannot be compiled."""
    builder, _ = declare("bad", Bindings((), ()), TENSORRT_RTX.opset)
    graph = builder.graph
    value = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2])
    graph.inputs.append(value)
    node = ir.node(op_type, [value], domain=domain)
    graph.append(node)
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph.outputs.append(node.outputs[0])
    return DeclaredEngine(
        ir.Model(graph, ir_version=11), Bindings((), ()), RandomReader(), calibrate=dict, previous=Path()
    )


def test_what_the_compiler_says_is_passed_on(tmp_path: Path) -> None:
    compiler = TensorRtRtxCompiler(Precision.BF16, library="")
    with pytest.raises(EngineError, match=r"target tensorrt_rtx cannot compile bad \(.*NoSuchOp.*\)"):
        compiler.write(one_node("NoSuchOp", ""), tmp_path, "bad", lambda fraction: None)


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


def test_a_bound_on_kept_tokens_shortens_caches() -> None:
    """After the first prune point only, and no longer than asked."""
    limits = replace(LIMITS, max_kept_tokens=300)
    bound = language_bindings(tiny(), limits, (1,), Scoring.OFF, Shard())
    lengths = {binding.name: binding.dims[2] for binding in bound.inputs if binding.name.startswith("past_key")}
    assert lengths == {"past_key_0": 1024, "past_key_1": 300}
    assert limits.kept(1).max == 300


@pytest.mark.parametrize(("target", "kept"), [(Target.ONNXRUNTIME, 100), (Target.TENSORRT_RTX, 2000)])
def test_an_impossible_bound_is_refused(tmp_path: Path, target: Target, kept: int) -> None:
    precision = target.precisions()[0]
    config = BuildConfig(tmp_path, tmp_path, tmp_path / "out", target, precision, 1000, max_kept_tokens=kept)
    with pytest.raises(EngineError, match=f"max_kept_tokens {kept} is for targets that plan memory"):
        build_pair(config)
