"""What the miniature's rates would cost in a published pair, by `sgl plan`'s arithmetic. Nothing of it is measured.

Taken over are rates only: which questions exit, which share of the tiles is encoded, of the visual tokens kept, of the
steps spared by drafts. Questions, stages and chip are the published pair's.
"""

from functools import cache

from engine.config import GuidanceConfig, default_prune_layers
from engine.evaluation.cascade import CostOf
from engine.evaluation.record import Record
from engine.families import published
from engine.planning.chip import Chip
from engine.planning.cost import Asked, Cost, Costs
from engine.planning.pair_plan import PairPlan, plan_pair
from engine.planning.plan_config import PlanConfig

SMALL, LARGE = "InternVL2-2B", "InternVL2-26B"
TILES, ANSWER = 13, 16
"""Of a question: tiles of its picture, tokens of its answer."""
WORDS = f"{SMALL} with {LARGE}, {TILES} tiles, answers of {ANSWER} tokens, bf16, a roofline of an {Chip.name}"


@cache
def published_pair() -> PairPlan:
    return plan_pair(PlanConfig(published(SMALL), published(LARGE)))


class Scaled:
    """Costs of a question of this size under a guidance."""

    def __init__(self, guidance: GuidanceConfig) -> None:
        pair, self._is_guided = published_pair(), guidance.enabled
        layers = pair.large.config.language.num_layers
        resolved = guidance.resolve(layers, default_prune_layers(layers)) if guidance.enabled else None
        self._large, whole = Costs(pair.large.guided(resolved), Chip()), Asked(TILES, TILES, None, ANSWER - 1)
        self._small, self._alone = Costs(pair.small, Chip()).of(whole), self._large.of(whole)

    def of_large(self, record: Record) -> Cost:
        """Of a question that it answers at the rates of a record."""
        steps = record.generated_tokens - 1
        taken = (steps - record.accepted_tokens) / steps if steps else 0.0
        encoded = round(TILES * (1 - record.tiles_skipped / record.tiles))
        kept = record.num_kept / record.visual_tokens if self._is_guided else None
        return self._large.of(Asked(TILES, encoded, kept, taken * (ANSWER - 1)))

    def by_operations(self) -> CostOf:
        """In what the large model alone takes."""
        unit = self._alone.operations
        return lambda record, exit: (self._small.operations / unit, self.of_large(record).operations / unit)

    def by_roofline(self) -> CostOf:
        """In the time that the large model alone takes."""
        unit = self._alone.seconds
        return lambda record, exit: (self._small.seconds / unit, self.of_large(record).seconds / unit)
