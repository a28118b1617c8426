"""The engines of one model, declared for the wanted target and precision: all that a compiler makes files of."""

import onnx_ir as ir

from engine.bindings import Scoring, language_bindings, scoring_bindings, vision_bindings
from engine.build.calibrate import Inputs, language_inputs, vision_inputs
from engine.build.compiler import DeclaredEngine
from engine.build.language import language_graph
from engine.build.role import Role
from engine.build.scoring import scoring_graph
from engine.build.targets.onnxruntime_evaluate import evaluate
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader
from engine.config import BuildConfig
from engine.dims import Limits
from engine.manifest import limits_of
from engine.parallel import Shard
from engine.plugins.lowering import Lowering


def vision_engine(build: BuildConfig, role: Role, lowering: Lowering) -> DeclaredEngine:
    """One model's vision engine."""
    settings = role.config.vision, limits_of(build, role.config, role.prune_layers)
    dtype = build.target.activations(build.precision)
    return DeclaredEngine(
        graph=vision_graph(*settings, lowering, dtype),
        bindings=vision_bindings(*settings, dtype),
        reader=WeightReader(role.checkpoint, role.family.vision_sources(role.config, role.checkpoint.names())),
        calibrate=lambda: vision_inputs(role.family, role.config),
        previous=build.out / role.name,
    )


def language_engine(build: BuildConfig, role: Role, lowering: Lowering, shard: Shard) -> DeclaredEngine:
    """One rank's part of a model's language engine."""
    limits = limits_of(build, role.config, role.prune_layers)
    settings = role.config.language, limits, role.prune_layers
    dtype = build.target.activations(build.precision)
    scoring = lowering.scoring(role.scores)

    def graph(of: Shard) -> ir.Model:
        return language_graph(*settings, role.scores, of, lowering, dtype)

    return DeclaredEngine(
        graph=graph(shard),
        bindings=language_bindings(*settings, scoring, shard, dtype),
        reader=WeightReader(role.checkpoint, role.family.language_sources(role.config, role.checkpoint.names())),
        calibrate=lambda: language_calibration(role, limits),
        previous=build.out / role.name / f"rank{shard.rank}",
        whole=(lambda: graph(Shard())) if shard.world_size > 1 else None,
        scoring=scoring_engine(build, role, lowering, shard) if scoring is Scoring.DEFERRED else None,
    )


def scoring_engine(build: BuildConfig, role: Role, lowering: Lowering, shard: Shard) -> DeclaredEngine:
    """The engine beside one rank's language engine that adds up the scores."""
    settings = role.config.language, limits_of(build, role.config, role.prune_layers), role.prune_layers, shard
    dtype = build.target.activations(build.precision)
    return DeclaredEngine(
        graph=scoring_graph(*settings, lowering, dtype),
        bindings=scoring_bindings(*settings, dtype),
        reader=WeightReader(role.checkpoint, {}),
        calibrate=dict,
        previous=build.out / role.name / f"rank{shard.rank}",
    )


def language_calibration(role: Role, limits: Limits) -> Inputs:
    """A prompt with what the model's own float32 vision encoder makes of the calibration pictures."""
    reader = WeightReader(role.checkpoint, role.family.vision_sources(role.config, role.checkpoint.names()))
    features = evaluate(vision_graph(role.config.vision, limits), reader, vision_inputs(role.family, role.config))
    return language_inputs(role.config.language, features.reshape(-1, features.shape[-1]), len(role.prune_layers))
