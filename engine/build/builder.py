"""A checkpoint pair -> an engine directory, component by component."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import engine
from engine.bindings import Scoring, language_bindings, scoring_bindings, vision_bindings
from engine.build.calibrate import Inputs, language_inputs, vision_inputs
from engine.build.compiler import Compiler, Part
from engine.build.language import language_graph
from engine.build.role import OnProgress, Role, read_role, settle_tokens
from engine.build.scoring import scoring_graph
from engine.build.staging import (
    BuildReport,
    Component,
    build_components,
    component_key,
    refuse_foreign,
    refuse_unnameable,
)
from engine.build.targets.onnxruntime import OnnxRuntimeCompiler
from engine.build.targets.onnxruntime_evaluate import evaluate
from engine.build.targets.tensorrt import TensorRtCompiler
from engine.build.targets.tensorrt_rtx import TensorRtRtxCompiler
from engine.build.tokenizer import write_tokenizer
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader
from engine.config import BuildConfig, ExitConfig, GuidanceConfig
from engine.dims import Limits
from engine.errors import EngineError
from engine.manifest import FORMAT_VERSION, ComponentRecord, EngineModel, Manifest, interface_of, limits_of
from engine.model_config import AnyResolutionConfig, NativeSizeConfig, TilingConfig
from engine.parallel import SHARDED, Mapping
from engine.plugins.lowering import LOWERINGS
from engine.target import Precision, Target

VERSIONED = ("onnx", "onnx-ir", "onnxscript")
"""Packages whose version decides what a build yields, besides the target's compiler."""
TOKENIZER = "/tokenizer"


def build_pair(build: BuildConfig, on_progress: OnProgress = lambda name, fraction: None) -> BuildReport:
    """Build what is missing of `build.out`. Raises EngineError; an interrupted build resumes when run again.

    on_progress: gets a component's name and how much of it is done, 0..1.
    """
    refuse_unnameable(build.small, build.large, build.out)
    refuse_foreign(build.out)
    check_kept(build)
    compiler = open_compiler(build)
    build, notes = settle_tokens(build)
    check_kept(build)  # of what may have become fewer tokens
    versions = {name: version(name) for name in VERSIONED} | dict(compiler.versions())
    roles = [
        read_role(build, "small", build.small, (), True, on_progress),
        read_role(build, "large", build.large, build.prune_layers, build.large_scores, on_progress),
    ]
    check_picture_limits(build, roles)
    components = [component for role in roles for component in role_components(build, role, compiler)]
    # Tokenizers first: what is wrong with one of them shows before hours of weights.
    components.sort(key=lambda component: not component.name.endswith(TOKENIZER))

    def make_manifest(records: dict[str, ComponentRecord]) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            engine_version=engine.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=build.target,
            precision=build.precision,
            max_tokens=build.tokens(),
            max_batch=build.max_batch,
            world_size=build.world_size,
            versions=versions,
            max_kept_tokens=build.max_kept_tokens,
            max_tiles=build.max_tiles,
            min_pixels=build.min_pixels,
            max_pixels=build.max_pixels,
            gpu=compiler.gpu(),
            models={role.name: engine_model(build, role) for role in roles},
            components=records,
            guidance=GuidanceConfig(),
            exit=ExitConfig(),
        )

    wanted = wanted_components(build, components)
    report = build_components(build.out, components, make_manifest, on_progress, wanted)
    return replace(report, notes=(*notes, *(note for role in roles for note in role.notes)))


def engine_model(build: BuildConfig, role: Role) -> EngineModel:
    """What the manifest says of one model."""
    scoring = LOWERINGS[build.target].scoring(role.scores)
    interface = interface_of(build, role.config, role.prune_layers, scoring)
    return EngineModel(role.config, role.fingerprint, role.prune_layers, scoring, interface)


def wanted_components(build: BuildConfig, components: Sequence[Component]) -> set[str] | None:
    """Those that this run builds; None is all of them."""
    if build.rank is None:
        return None
    ranks = [f"{SHARDED}/language/rank{mapping.rank}" for mapping in build.mappings(SHARDED)]
    shared = {component.name for component in components}.difference(ranks)
    return {ranks[build.rank], *(shared if build.rank == 0 else ())}


def role_components(build: BuildConfig, role: Role, compiler: Compiler) -> Iterator[Component]:
    """The parts of one model, each of which is built, cached and resumed by itself."""

    def key(part: str, *inputs: object) -> str:
        versions = [version(name) for name in VERSIONED]
        return component_key(part, code_fingerprint(), versions, role.fingerprint, role.config, *inputs)

    def build_tokenizer(out: Path, on_progress: Callable[[float], None]) -> None:
        write_tokenizer(role.checkpoint.directory, out)

    def build_vision(out: Path, on_progress: Callable[[float], None]) -> None:
        compiler.write(vision_part(build, role), out, "vision", on_progress)

    def build_language(mapping: Mapping, out: Path, on_progress: Callable[[float], None]) -> None:
        rank = f"rank{mapping.rank}"
        (out / rank).mkdir()
        compiler.write(language_part(build, role, mapping), out / rank, "language", on_progress)

    limits = limits_of(build, role.config, role.prune_layers)
    shared = (build.target, build.precision, limits, dict(compiler.versions()), compiler.gpu())
    yield Component(f"{role.name}{TOKENIZER}", key("tokenizer"), build_tokenizer)
    yield Component(f"{role.name}/vision", key("vision", *shared), build_vision)
    for mapping in build.mappings(role.name):
        language_key = key("language", *shared, role.prune_layers, role.scores, mapping)
        yield Component(f"{role.name}/language/rank{mapping.rank}", language_key, partial(build_language, mapping))


def vision_part(build: BuildConfig, role: Role) -> Part:
    """One model's vision engine, declared for the wanted target and precision."""
    settings = role.config.vision, limits_of(build, role.config, role.prune_layers)
    lowering, dtype = LOWERINGS[build.target], build.precision.activations(build.target)
    return Part(
        vision_graph(*settings, lowering, dtype),
        vision_bindings(*settings, dtype),
        WeightReader(role.checkpoint, role.family.vision_sources(role.config, role.checkpoint.names())),
        lambda: vision_inputs(role.family, role.config),
        build.out / role.name,
    )


def language_part(build: BuildConfig, role: Role, mapping: Mapping) -> Part:
    """One rank's part of a model's language engine, declared for the wanted target and precision."""
    limits = limits_of(build, role.config, role.prune_layers)
    settings = role.config.language, limits, role.prune_layers
    lowering, dtype = LOWERINGS[build.target], build.precision.activations(build.target)
    scoring = lowering.scoring(role.scores)
    return Part(
        language_graph(*settings, role.scores, mapping, lowering, dtype),
        language_bindings(*settings, scoring, mapping, dtype),
        WeightReader(role.checkpoint, role.family.language_sources(role.config, role.checkpoint.names())),
        lambda: language_calibration(role, limits),
        build.out / role.name / f"rank{mapping.rank}",
        (lambda: language_graph(*settings, role.scores, Mapping(), lowering, dtype))
        if mapping.world_size > 1
        else None,
        scoring_part(build, role, mapping) if scoring is Scoring.DEFERRED else None,
    )


def scoring_part(build: BuildConfig, role: Role, mapping: Mapping) -> Part:
    """The engine beside one rank's language engine that adds up the scores."""
    settings = role.config.language, limits_of(build, role.config, role.prune_layers), role.prune_layers, mapping
    lowering, dtype = LOWERINGS[build.target], build.precision.activations(build.target)
    return Part(
        scoring_graph(*settings, lowering, dtype),
        scoring_bindings(*settings, dtype),
        WeightReader(role.checkpoint, {}),
        dict,
        build.out / role.name / f"rank{mapping.rank}",
    )


def check_kept(build: BuildConfig) -> None:
    """Raises EngineError for `max_kept_tokens` that nothing would read, or that are more than there can be."""
    kept = build.max_kept_tokens
    if kept is not None and not (build.target.plans_memory() and 0 < kept <= build.tokens()):
        raise EngineError(
            f"max_kept_tokens {kept} is for targets that plan memory ({Target.TENSORRT_RTX}, {Target.TENSORRT}) and at "
            f"most max_tokens {build.tokens()}; leave it out or choose less"
        )


def check_picture_limits(build: BuildConfig, roles: Sequence[Role]) -> None:
    """Raises EngineError for limits of pictures that neither model reads."""
    for name, kind, pictures in (
        ("max_tiles", TilingConfig | AnyResolutionConfig, "cuts pictures into tiles"),
        ("min_pixels", NativeSizeConfig, "takes pictures at their own size"),
        ("max_pixels", NativeSizeConfig, "takes pictures at their own size"),
    ):
        if getattr(build, name) is not None and not any(isinstance(role.config.tiling, kind) for role in roles):
            raise EngineError(f"{name} is given, but neither model {pictures}; leave it out")


def open_compiler(build: BuildConfig) -> Compiler:
    """What compiles for the wanted target. Raises EngineError when it cannot, before anything slow."""
    target, precision = build.target, build.precision
    target.check(precision)
    if target is Target.ONNXRUNTIME:
        if precision is Precision.FP16 and build.world_size > 1:
            raise EngineError(
                f"precision {precision} of target {target} is for one GPU, and its ranks run on CPUs; leave out --tp, "
                "or choose another precision"
            )
        return OnnxRuntimeCompiler(precision)
    return TensorRtRtxCompiler(precision) if target is Target.TENSORRT_RTX else TensorRtCompiler(precision)


def language_calibration(role: Role, limits: Limits) -> Inputs:
    """A prompt with what the model's own float32 vision encoder makes of the calibration pictures."""
    reader = WeightReader(role.checkpoint, role.family.vision_sources(role.config, role.checkpoint.names()))
    features = evaluate(vision_graph(role.config.vision, limits), reader, vision_inputs(role.family, role.config))
    return language_inputs(role.config.language, features.reshape(-1, features.shape[-1]), len(role.prune_layers))


def code_fingerprint() -> str:
    """SHA-256 over the source of this package: a changed builder never meets a cache of the old one."""
    root = Path(engine.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] != "runtime":
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
