"""A pair on the ranks that share its large model: memory of each rank, and what one question asks of it."""

from dataclasses import dataclass
from pathlib import Path

from engine.config import GuidanceConfig, default_prune_layers
from engine.families import read_model
from engine.model_config import ModelConfig
from engine.parallel import Shard
from engine.planning.model_plan import ModelPlan
from engine.planning.plan_config import PlanConfig
from engine.planning.storage import storage_of
from engine.planning.workload import Workload


@dataclass(frozen=True)
class Memory:
    """Bytes of one model on one rank. kv_full, kv_pruned: of the layers below the prune layer, and from it on."""

    language: int
    vision: int
    kv_full: int
    kv_pruned: int
    activations: int

    def weights(self) -> int:
        return self.language + self.vision

    def working(self) -> int:
        """What is needed only while the model answers."""
        return self.kv_full + self.kv_pruned + self.activations


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. small, features: on rank 0, which leads the others.

    features: of pictures that were asked about before, kept for both models, at most.
    """

    large: Memory
    small: Memory | None
    features: int

    def total(self) -> int:
        """Weights of both stay; the models take turns, so the larger of their working memories counts."""
        models = [self.large] if self.small is None else [self.small, self.large]
        return sum(model.weights() for model in models) + self.features + max(model.working() for model in models)


@dataclass(frozen=True)
class PairPlan:
    """What every rank of a pair is to hold. guidance: resolved; None where nothing is pruned."""

    config: PlanConfig
    guidance: GuidanceConfig | None
    small: ModelPlan
    large: ModelPlan

    def memory(self, workload: Workload, rank: int) -> RankMemory:
        return RankMemory(
            _memory(self.large, workload),
            _memory(self.small, workload) if rank == 0 else None,
            2 * self.config.feature_cache if rank == 0 else 0,
        )


def plan_pair(config: PlanConfig) -> PairPlan:
    """Raises EngineError when the large model cannot be split among the ranks, CheckpointError, RequestError."""
    storage = storage_of(config.target, config.precision)
    small, large = read_config(config.small), read_config(config.large)
    layers, wanted = large.language.num_layers, config.guidance.prune_layer
    # Nothing is built yet: any layer can be pruned at.
    points = tuple(sorted({*default_prune_layers(layers), *([wanted] if wanted else [])}))
    guidance = config.guidance.resolve(layers, points) if config.guidance.enabled else None
    # Ranks differ in nothing but which part they own: what one needs, all need.
    planned = config.target.plans_memory()
    return PairPlan(
        config,
        guidance,
        small=ModelPlan(small, storage, Shard(), scores=True, planned=planned),
        large=ModelPlan(large, storage, Shard(0, config.world_size), points, guidance, planned=planned),
    )


def read_config(directory: Path) -> ModelConfig:
    """Raises CheckpointError."""
    return read_model(directory)[1]


def _memory(model: ModelPlan, workload: Workload) -> Memory:
    return Memory(model.language_bytes, model.vision_bytes, *model.kv_bytes(workload), model.activation_bytes(workload))
