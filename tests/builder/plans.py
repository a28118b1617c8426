"""What tests of TensorRT-RTX plans compile, and what they read in the compiler's report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engine.bindings import SCORING_ENGINE, language_bindings, scoring_bindings
from engine.build.compiler import DeclaredEngine
from engine.build.language import language_graph
from engine.build.layer_report import LayerReport
from engine.build.scoring import scoring_graph
from engine.build.targets.tensorrt_rtx import TensorRtRtxCompiler
from engine.build.weights import WeightReader
from engine.config import BuildConfig
from engine.dims import Limits
from engine.engine_directory import read_json
from engine.model_config import LanguageConfig, RopeConfig
from engine.parallel import Shard
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.target import Precision, Target

LIMITS = Limits(max_tokens=1024, max_batch=2, max_tiles=13, planned=True)
PRUNE_LAYERS = (2,)
PREFILL, DECODE = range(2)


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
    settings = config, LIMITS, prune_layers
    dtype = Target.TENSORRT_RTX.activations(precision)
    part = DeclaredEngine(
        language_graph(*settings, scores, Shard(), TENSORRT_RTX, dtype),
        language_bindings(*settings, TENSORRT_RTX.scoring(scores), Shard(), dtype),
        reader or RandomReader(),
        calibrate=dict,
        previous=directory,
    )
    return _compile(part, precision, directory, "language")


def compile_scoring(directory: Path, config: LanguageConfig, limits: Limits) -> LayerReport:
    settings, dtype = (config, limits, (), Shard()), Target.TENSORRT_RTX.activations(Precision.BF16)
    graph, bound = scoring_graph(*settings, TENSORRT_RTX, dtype), scoring_bindings(*settings, dtype)
    part = DeclaredEngine(graph, bound, RandomReader(), calibrate=dict, previous=directory)
    return _compile(part, Precision.BF16, directory, SCORING_ENGINE)


def _compile(part: DeclaredEngine, precision: Precision, directory: Path, name: str) -> LayerReport:
    TensorRtRtxCompiler(precision, library="").write(part, directory, name, lambda fraction: None)
    assert sorted(path.name for path in directory.iterdir()) == [f"{name}.layers.json", f"{name}.plan"]
    return read_json(directory / f"{name}.layers.json", LayerReport)


def tiny(**changes: object) -> LanguageConfig:
    config = LanguageConfig(64, 2, 4, 2, 16, 160, 96, 1e-5, RopeConfig(1e6, 8192))
    return replace(config, **changes)  # type: ignore[arg-type]


def num_fused(report: LayerReport, profile: int) -> int:
    return sum(layer.is_fused_attention() for layer in report.of_profile(profile))


def users(report: LayerReport, profile: int, part: str) -> list[tuple[str, ...]]:
    """Nodes of each kernel that computes a node whose name holds `part`."""
    return [layer.nodes for layer in report.of_profile(profile) if any(part in node for node in layer.nodes)]


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
