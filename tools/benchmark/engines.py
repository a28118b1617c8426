"""Our side: random checkpoints and the engines built of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.build.calibrate import language_inputs
from engine.build.checkpoint import Checkpoint
from engine.build.language import language_graph
from engine.build.scoring import scoring_graph
from engine.build.targets.onnxruntime import write_engine, write_scoring_engine
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader
from engine.config import MAX_TOKENS, BuildConfig
from engine.dims import Limits
from engine.families import family_of, read_model
from engine.model_config import ModelConfig
from engine.target import Precision
from tools.benchmark.runners import LanguageEngine, VisionEngine
from tools.benchmark.sizes import SEED, Published
from tools.random_checkpoint import write_checkpoint, write_tokenizer

OnProgress = Callable[[float], None]
SHARDS = 4


@dataclass(frozen=True)
class Model:
    """A random checkpoint and what it is in our terms."""

    directory: Path
    config: ModelConfig


def write_model(directory: Path, published: Published, on_progress: OnProgress) -> Model:
    """Write the checkpoint with its tokenizer, unless another question did."""
    on_progress(0.0)
    if not (directory / "tokenizer.json").is_file():
        write_checkpoint(directory, published, SEED, SHARDS)
        write_tokenizer(directory)
    on_progress(1.0)
    return Model(directory, read_model(directory)[1])


def build_language(
    model: Model,
    out: Path,
    threads: int,
    on_progress: OnProgress,
    scores: bool = False,
    prune_layers: tuple[int, ...] = (),
    precision: Precision = Precision.FP32,
) -> LanguageEngine:
    """Build one language engine the way `sgl build` does, unless another question did."""
    config, path = model.config.language, out / "language.onnx"
    engine = LanguageEngine(path, config, prune_layers, scores, threads)
    if path.exists():  # written last
        return engine
    out.mkdir(parents=True, exist_ok=True)
    graph = language_graph(config, _limits(model), prune_layers, scores)
    calibration = None
    if precision is Precision.INT8:
        visual = (model.config.tokens_of(1), config.hidden_size)
        features = np.random.default_rng(SEED).standard_normal(visual, np.float32)
        calibration = language_inputs(config, features, len(prune_layers))
    family, _ = family_of(model.directory)
    checkpoint = Checkpoint(model.directory)
    reader = WeightReader(checkpoint, family.language_sources(model.config, checkpoint.names()))
    if scores:
        write_scoring_engine(scoring_graph(config, _limits(model), prune_layers), out)
    write_engine(graph, reader, path, on_progress, calibration)
    return engine


def build_vision(model: Model, out: Path, threads: int, on_progress: OnProgress) -> VisionEngine:
    """Build one vision engine the way `sgl build` does, unless another question did."""
    path = out / "vision.onnx"
    engine = VisionEngine(path, model.config.vision, threads)
    if path.exists():
        return engine
    out.mkdir(parents=True, exist_ok=True)
    family, _ = family_of(model.directory)
    checkpoint = Checkpoint(model.directory)
    reader = WeightReader(checkpoint, family.vision_sources(model.config, checkpoint.names()))
    graph = vision_graph(model.config.vision, _limits(model))
    write_engine(graph, reader, path, on_progress)
    return engine


def _limits(model: Model) -> Limits:
    """Of a build that names none."""
    return Limits(MAX_TOKENS, BuildConfig.max_batch, model.config.most_tiles())
