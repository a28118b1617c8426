"""How much of a workload fits a memory, and what to change when none of it does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engine.build_flags import BuildFlag
from engine.errors import EngineError, Setting
from engine.planning.pair_plan import PairPlan, plan_pair
from engine.planning.plan_config import PlanConfig
from engine.planning.storage import storage_of
from engine.planning.workload import Workload
from engine.units import size_text

MOST_QUESTIONS = 1024
"""Where the search for a batch ends."""
WORLD_SIZES = (1, 2, 4, 8)
"""Up to the GPUs of one machine."""


@dataclass(frozen=True)
class Fit:
    """batch: most questions of the workload's size at once. context: most tokens of one question with its answer.

    context_of_models: the context is the most that both models were published for; there would be memory for more.
    """

    batch: int
    context: int
    context_of_models: bool


def fit(plan: PairPlan, workload: Workload, budget: int) -> Fit:
    """budget: bytes of each rank. Raises EngineError, with what to change, when not even one question fits."""

    def fits(**changes: int) -> bool:
        return plan.memory(replace(workload, **changes), rank=0).total() <= budget

    if not fits(batch=1):
        raise _refusal(plan, replace(workload, batch=1), budget)
    config = plan.large.config
    beside_text = workload.context(config) - workload.text_tokens
    positions = min(model.config.language.rope.max_positions for model in (plan.small, plan.large))
    longest = max(positions - beside_text, workload.text_tokens)
    text = _largest(lambda tokens: fits(batch=1, text_tokens=tokens), workload.text_tokens, longest)
    return Fit(
        batch=_largest(lambda batch: fits(batch=batch), 1, MOST_QUESTIONS),
        context=beside_text + text,
        context_of_models=text == longest,
    )


def _largest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest of low..high for which it holds; it holds for `low`, and for all below one for which it holds."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _refusal(plan: PairPlan, workload: Workload, budget: int) -> EngineError:
    config = plan.config
    needed = plan.memory(workload, rank=0).total()
    remedies = " or ".join(_remedies(config, workload, budget))
    larger = ("choose a smaller model, a shorter question or a larger ", Setting("gpu_memory"))
    return EngineError(
        f"{plan.large.config.name} in {config.precision} with {plan.small.config.name} needs {size_text(needed)} "
        f"on rank 0 of {config.world_size} for one question of {workload.context(plan.large.config):,} tokens, "
        f"{size_text(needed - budget)} more than the {size_text(budget)} that it can use; ",
        *((f"give {remedies}",) if remedies else larger),
    )


def _remedies(config: PlanConfig, workload: Workload, budget: int) -> Iterator[str]:
    """The next world size that fits, and the next smaller precision that does."""

    def fits(changed: PlanConfig) -> bool:
        try:
            return plan_pair(changed).memory(workload, rank=0).total() <= budget
        except EngineError:
            return False  # cannot be split so

    for world_size in WORLD_SIZES:
        if world_size > config.world_size and fits(replace(config, world_size=world_size)):
            yield f"{BuildFlag.TP} {world_size}"
            break
    bits = {precision: storage_of(config.target, precision).matrix for precision in config.target.precisions()}
    for precision in bits:
        if bits[precision] < bits[config.precision] and fits(replace(config, precision=precision)):
            yield f"{BuildFlag.PRECISION} {precision}"
            break
