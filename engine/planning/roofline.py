"""Predicted latency: what a chip's stated figures allow at most, reached by no kernel. Nothing here is measured."""

from dataclasses import dataclass

from engine.planning.chip import Chip
from engine.planning.model_plan import Call, ModelPlan
from engine.planning.workload import Workload


@dataclass(frozen=True)
class Latency:
    """Seconds of one question in one model. first_token: pictures and prompt; next_token: each after the first."""

    first_token: float
    next_token: float

    def answer(self, tokens: int) -> float:
        return self.first_token + (tokens - 1) * self.next_token


def latency(model: ModelPlan, workload: Workload, chip: Chip) -> Latency:
    """Of one batch, without the consistency pass."""
    calls = model.vision_call(workload), model.prefill(workload), model.decode(workload)
    vision, prefill, decode = (call_seconds(call, chip, model.shard.world_size) for call in calls)
    return Latency(vision + prefill, decode)


def call_seconds(call: Call, chip: Chip, world_size: int) -> float:
    """The slower of computing and reading, then the sums over the ranks."""
    computed = max(call.operations / chip.matrix_rate, call.bytes / chip.bandwidth)
    return computed + reduce_seconds(call, chip, world_size)


def reduce_seconds(call: Call, chip: Chip, world_size: int) -> float:
    return len(call.reduced) * chip.reduce_latency + sent_bytes(call, world_size) / chip.interconnect


def sent_bytes(call: Call, world_size: int) -> float:
    """That each rank sends in a call: a ring sends every tensor 2 (N-1)/N times."""
    return 2 * (world_size - 1) / world_size * sum(call.reduced)
