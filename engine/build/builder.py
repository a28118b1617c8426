"""A checkpoint pair -> an engine directory, component by component."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import engine
from engine.build import engines, tokenizer
from engine.build.compiler import Compiler
from engine.build.engines import language_engine, vision_engine
from engine.build.read_role import OnProgress, read_role, settle_tokens
from engine.build.role import Role
from engine.build.source import source_fingerprint
from engine.build.staging import (
    BuildReport,
    Component,
    build_components,
    component_key,
    refuse_foreign,
    refuse_unnameable,
)
from engine.build.toolchains import open_compiler
from engine.config import BuildConfig, ExitConfig, GuidanceConfig
from engine.errors import EngineError, Setting
from engine.manifest import FORMAT_VERSION, ComponentRecord, EngineModel, Manifest, interface_of, limits_of
from engine.model_config import AnyResolutionConfig, NativeSizeConfig, TilingConfig
from engine.parallel import SHARDED, Shard
from engine.plugins.lowerings import LOWERINGS
from engine.target import Target

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
    ranks = [f"{SHARDED}/language/rank{shard.rank}" for shard in build.shards(SHARDED)]
    shared = {component.name for component in components}.difference(ranks)
    return {ranks[build.rank], *(shared if build.rank == 0 else ())}


def role_components(build: BuildConfig, role: Role, compiler: Compiler) -> Iterator[Component]:
    """The parts of one model, each of which is built, cached and resumed by itself."""
    lowering = LOWERINGS[build.target]
    engine_source = source_fingerprint(
        (engines.__name__, type(compiler).__module__, lowering.module, role.family.__name__)
    )

    def key(part: str, source: str, *inputs: object) -> str:
        versions = [version(name) for name in VERSIONED]
        return component_key(part, source, versions, role.fingerprint, role.config, *inputs)

    def build_tokenizer(out: Path, on_progress: Callable[[float], None]) -> None:
        tokenizer.write_tokenizer(role.checkpoint.directory, out, role.config.prompt.added)

    def build_vision(out: Path, on_progress: Callable[[float], None]) -> None:
        compiler.write(vision_engine(build, role, lowering), out, "vision", on_progress)

    def build_language(shard: Shard, out: Path, on_progress: Callable[[float], None]) -> None:
        rank = f"rank{shard.rank}"
        (out / rank).mkdir()
        compiler.write(language_engine(build, role, lowering, shard), out / rank, "language", on_progress)

    limits = limits_of(build, role.config, role.prune_layers)
    shared = (build.target, build.precision, limits, dict(compiler.versions()), compiler.gpu())
    tokenizer_key = key("tokenizer", source_fingerprint((tokenizer.__name__,)))
    yield Component(f"{role.name}{TOKENIZER}", tokenizer_key, build_tokenizer)
    yield Component(f"{role.name}/vision", key("vision", engine_source, *shared), build_vision)
    for shard in build.shards(role.name):
        language_key = key("language", engine_source, *shared, role.prune_layers, role.scores, shard)
        yield Component(f"{role.name}/language/rank{shard.rank}", language_key, partial(build_language, shard))


def check_kept(build: BuildConfig) -> None:
    """Raises EngineError for `max_kept_tokens` that nothing would read, or that are more than there can be."""
    kept = build.max_kept_tokens
    if kept is not None and not (build.target.plans_memory() and 0 < kept <= build.tokens()):
        planning = [target for target in Target if target.plans_memory()]
        raise EngineError(
            Setting("max_kept_tokens"),
            f" {kept} is for targets that plan memory ({', '.join(planning)}) and at most ",
            Setting("max_tokens"),
            f" {build.tokens()}; leave it out or choose less",
        )


def check_picture_limits(build: BuildConfig, roles: Sequence[Role]) -> None:
    """Raises EngineError for limits of pictures that neither model reads."""
    for name, kind, pictures in (
        ("max_tiles", TilingConfig | AnyResolutionConfig, "cuts pictures into tiles"),
        ("min_pixels", NativeSizeConfig, "takes pictures at their own size"),
        ("max_pixels", NativeSizeConfig, "takes pictures at their own size"),
    ):
        if getattr(build, name) is not None and not any(isinstance(role.config.tiling, kind) for role in roles):
            raise EngineError(Setting(name), f" is given, but neither model {pictures}; leave it out")
