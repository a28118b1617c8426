"""A pair as one process answers with it: how long its runs take, and how much of memory is for keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.config import ExitConfig, GuidanceConfig
from engine.errors import EngineError, Setting
from engine.planning.chip import Chip
from engine.planning.load.course import Course, Side, Size, course, kv_token_bytes
from engine.planning.load.predicted import predicted_times
from engine.planning.load.times import PairTimes
from engine.planning.load.traffic import Kind
from engine.planning.pair_plan import PairPlan
from engine.planning.storage import storage_of
from engine.planning.workload import Workload
from engine.runtime.pipeline import SglPipeline
from engine.units import size_text

FLOAT_BITS = 32
"""Of an activation of what runs on a CPU."""


@dataclass(frozen=True)
class Service:
    """prune_layers: of the large model. kv_memory: bytes; None is as many as are wanted. most_running: questions at
    once that the engines take. unit, each: what a replica takes, and how many of it.
    """

    times: PairTimes
    small: Side
    large: Side
    prune_layers: tuple[int, ...]
    kv_memory: int | None
    most_running: int | None
    unit: str
    each: int

    def resolved(self, guidance: GuidanceConfig) -> GuidanceConfig | None:
        """None where nothing is pruned. Raises RequestError."""
        if not guidance.enabled:
            return None
        return guidance.resolve(self.large.config.language.num_layers, self.prune_layers)

    def courses(
        self, kinds: Sequence[Kind], guidance: GuidanceConfig | None, exit: ExitConfig, most_new: int
    ) -> dict[Size, Course]:
        """Of every size. guidance: resolved. most_new: tokens of an answer at most."""
        large = replace(self.large, guidance=guidance)
        small = self.small if guidance is not None or exit.enabled else None
        longest = {kind.size: max(kind.size.small_tokens, kind.size.large_tokens, most_new) for kind in kinds}
        return {size: course(size, small, large, exit, tokens) for size, tokens in longest.items()}


def predicted_service(plan: PairPlan, chip: Chip, question: Workload, chunk: int) -> Service:
    """By the roofline. question: one of the longest. Raises EngineError when it does not fit."""
    planned, bits = plan.config.target.plans_memory(), storage_of(plan.config.target, plan.config.precision).activation
    small, large = (
        Side(model.config, kv_token_bytes(model.config.language, bits, model.shard), chunk, planned=planned)
        for model in (plan.small, plan.large)
    )
    memory = plan.memory(replace(question, batch=1), rank=0)
    assert memory.small is not None
    models = memory.small, memory.large
    fixed = sum(model.weights() for model in models) + memory.features + max(model.activations for model in models)
    kv_memory, needed = chip.usable() - fixed, sum(model.kv_full + model.kv_pruned for model in models)
    if kv_memory < needed:
        raise EngineError(
            f"{plan.large.config.name} with {plan.small.config.name} leaves {size_text(max(kv_memory, 0))} for keys "
            f"and values, and one question takes {size_text(needed)}; choose smaller models, a shorter question or a "
            "larger ",
            Setting("gpu_memory"),
        )
    layers = range(1, plan.large.config.language.num_layers)
    return Service(
        predicted_times(plan, chip), small, large, tuple(layers), kv_memory, None, "GPU", plan.config.world_size
    )


def measured_service(pipeline: SglPipeline, times: PairTimes, chunk: int) -> Service:
    """On this machine."""
    manifest, limits = pipeline.manifest, pipeline.manifest.limits("large")
    planned = manifest.target.plans_memory()
    small, large = (
        Side(model.config, kv_token_bytes(model.config.language, FLOAT_BITS), chunk, planned=planned)
        for model in (pipeline.small, pipeline.large)
    )
    most = limits.max_batch if limits.planned else None
    kv_memory = pipeline.load_now().kv_memory
    return Service(times, small, large, manifest.models["large"].prune_layers, kv_memory, most, "machine", 1)
