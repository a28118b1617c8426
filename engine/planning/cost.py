"""What a question costs in a model: operations, and a roofline's seconds. Arithmetic; nothing is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from engine.planning.chip import Chip
from engine.planning.model_plan import Call, ModelPlan
from engine.planning.roofline import call_seconds
from engine.planning.workload import Workload


@dataclass(frozen=True)
class Cost:
    """operations: multiplications and additions."""

    operations: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.operations + other.operations, self.seconds + other.seconds)

    def times(self, count: float) -> "Cost":
        return Cost(self.operations * count, self.seconds * count)


@dataclass(frozen=True)
class Asked:
    """What one question asks of a model. encoded: of the tiles, those that it is shown. kept: fraction of the visual
    tokens that it keeps, None is all without guidance. steps: tokens that it decodes one by one.
    """

    tiles: int
    encoded: int
    kept: float | None
    steps: float
    text_tokens: int = Workload.text_tokens


class Costs:
    """Of questions, each alone, in one model. Without the consistency pass."""

    def __init__(self, model: ModelPlan, chip: Chip) -> None:
        self._model, self._chip = model, chip
        self._stages = cache(self._of_stages)

    def of(self, asked: Asked) -> Cost:
        """The whole question."""
        stages = self.stages(asked)
        return stages["vision"] + stages["prefill"] + stages["decode"]

    def stages(self, asked: Asked) -> Mapping[str, Cost]:
        """`vision`, `prefill`, and `decode` of all its steps."""
        stages = self._stages(replace(asked, steps=0))
        return {**stages, "decode": stages["decode"].times(asked.steps)}

    def _of_stages(self, asked: Asked) -> Mapping[str, Cost]:
        """`decode` of one step."""
        model = self._model.unpruned() if asked.kept is None else self._model.keeping(asked.kept)
        workload = Workload(
            asked.tiles, text_tokens=asked.text_tokens, new_tokens=1, encoded_tiles=max(1, asked.encoded)
        )
        calls = {
            "vision": model.vision_call(workload),
            "prefill": model.prefill(workload),
            "decode": model.decode(workload),
        }
        return {name: self._cost(call) for name, call in calls.items()}

    def _cost(self, call: Call) -> Cost:
        return Cost(call.operations, call_seconds(call, self._chip, self._model.shard.world_size))
