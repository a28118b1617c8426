"""What each question of a run costs, by the time that its stages took or by `sgl plan`'s arithmetic."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np

from engine.config import ExitConfig, GuidanceConfig
from engine.errors import RequestError
from engine.evaluation.cascade import CostOf, seconds_of
from engine.evaluation.record import Record
from engine.manifest import Manifest
from engine.model_config import TilingConfig
from engine.parallel import Shard


class CostBy(StrEnum):
    SECONDS = "seconds"
    """Of the stages, as the run measured them."""
    OPERATIONS = "operations"
    """Multiplications and additions, in what the large model alone takes."""
    ROOFLINE = "roofline"
    """The least time that they and the memory they read take on the chip that a plan is for, likewise."""

    def unit(self) -> str:
        return "s a question" if self is CostBy.SECONDS else f"of the large model alone ({self}, not measured)"


def cost_of(by: CostBy, manifest: Manifest, guidance: GuidanceConfig, records: Sequence[Record]) -> CostOf:
    """Raises RequestError where pictures are not cut into tiles, which the arithmetic counts."""
    if by is CostBy.SECONDS:
        return seconds_of
    # Only here: what graphs are declared with takes long to import.
    from engine.planning.chip import Chip
    from engine.planning.cost import Asked, Cost, Costs
    from engine.planning.model_plan import ModelPlan
    from engine.planning.storage import storage_of
    from engine.planning.workload import Workload

    small, large = manifest.models["small"], manifest.models["large"]
    for model in (small, large):
        if not isinstance(model.config.tiling, TilingConfig):
            raise RequestError(f"{model.config.name} does not cut pictures into tiles, which {by} counts; use seconds")
    storage = storage_of(manifest.target, manifest.precision)
    resolved = None
    if guidance.enabled:
        resolved = guidance.resolve(large.config.language.num_layers, large.prune_layers)
    shard = Shard(0, manifest.world_size)
    of_small = Costs(ModelPlan(small.config, storage, Shard()), Chip())
    of_large = Costs(ModelPlan(large.config, storage, shard, large.prune_layers, resolved), Chip())

    def read(cost: Cost) -> float:
        return cost.operations if by is CostBy.OPERATIONS else cost.seconds

    def alone(record: Record) -> Asked:
        return Asked(record.tiles, record.tiles, None, max(0, record.generated_tokens - 1))

    unit = float(np.mean([read(of_large.of(alone(record))) for record in records]))

    def costs(record: Record, exit: ExitConfig) -> tuple[float, float]:
        said = len(record.decision.evidence.probabilities) if record.decision is not None else 0
        asked = replace(alone(record), steps=max(0, said - 1))
        guided = Asked(
            record.tiles,
            record.tiles - record.tiles_skipped,
            record.num_kept / record.visual_tokens if resolved is not None else None,
            max(0, record.generated_tokens - 1 - record.accepted_tokens),
            Workload.text_tokens + record.drafted_tokens,
        )
        return read(of_small.of(asked)) / unit, read(of_large.of(guided)) / unit

    return costs
