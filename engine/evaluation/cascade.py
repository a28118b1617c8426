"""The cascade at every threshold, from a labelled run: both models' grades, and what each criterion makes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.config import ExitConfig, ExitCriterion
from engine.errors import RequestError, Setting
from engine.evaluation.record import Record
from engine.runtime.answer import AnsweredBy
from engine.runtime.early_exit import decide
from engine.runtime.question import Stage

LARGE = "large"
"""How the stages of the large model begin."""
CostOf = Callable[[Record, ExitConfig], tuple[float, float]]
"""What a question costs in the small model, and in the large one if it is asked."""


@dataclass(frozen=True)
class Cascade:
    """The outcome if the surest questions exit; entry n is for n early exits, n = 0..N, so that nothing is binned.

    threshold [N+1]: the criterion's value from which a question exits. grade, cost [N+1]: means over all questions.
    reachable [N+1]: false where questions of equal value lie on both sides, which no threshold tells apart.
    """

    threshold: np.ndarray
    grade: np.ndarray
    cost: np.ndarray
    reachable: np.ndarray

    def exit_ratio(self) -> np.ndarray:
        return np.linspace(0, 1, len(self.threshold))

    def area(self) -> float:
        """Under the grade over the exit ratio: what figure 4 compares criteria by."""
        return float(np.trapezoid(self.grade, self.exit_ratio()))


@dataclass(frozen=True)
class Labelled:
    """A labelled run as arrays over its N questions; values are those of one criterion, costs in any unit."""

    values: np.ndarray
    small: np.ndarray
    large: np.ndarray
    small_cost: np.ndarray
    large_cost: np.ndarray

    def cascade(self) -> Cascade:
        # stable: of equal values, the earlier question exits first; `reachable` says that no threshold does so
        order = np.argsort(-self.values, kind="stable")
        ranked, count = self.values[order], len(order)
        gain = np.concatenate([[0], np.cumsum((self.small - self.large)[order])])
        saved = np.concatenate([[0], np.cumsum(self.large_cost[order])])
        everything = (self.small_cost + self.large_cost).sum()
        return Cascade(
            # Above the surest for no exits; a question exits at its own value.
            threshold=np.concatenate([[np.nextafter(ranked[0], np.inf)], ranked]),
            grade=(self.large.sum() + gain) / count,
            cost=(everything - saved) / count,
            reachable=np.concatenate([[True], ranked[:-1] > ranked[1:], [True]]),
        )

    def auc(self) -> float | None:
        """Probability that a right answer of the small model has a higher value than a wrong one; None if there are
        not both."""
        right, wrong = self.values[self.small > 0.5], self.values[self.small <= 0.5]
        if not len(right) or not len(wrong):
            return None
        difference = right[:, None] - wrong
        return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def seconds_of(record: Record, exit: ExitConfig) -> tuple[float, float]:
    """By its stages, without the consistency pass if nothing asks for it."""
    needed = {
        stage: seconds
        for stage, seconds in record.seconds.items()
        if exit.needs_consistency() or stage != Stage.CONSISTENCY
    }
    large = sum(seconds for stage, seconds in needed.items() if stage.startswith(LARGE))
    return sum(needed.values()) - large, large


def labelled(records: Sequence[Record], exit: ExitConfig, path: Path, cost_of: CostOf = seconds_of) -> Labelled:
    """The criterion of `exit` over a run. Raises RequestError unless both models answered and were graded."""
    if not records:
        raise RequestError(f"{path} has no answers yet; let sgl evaluate finish")
    values = []
    for record in records:
        evidence = record.decision.evidence if record.decision is not None else None
        if (
            evidence is None
            or evidence.consistency is None
            or record.small_grade is None
            or record.grade is None
            or record.answered_by is not AnsweredBy.LARGE
        ):
            raise RequestError(
                f"{path} has no answers or scores of both models to question {record.id}; run sgl evaluate with ",
                Setting("label"),
            )
        agreement = np.array(evidence.consistency)
        decision = decide(exit, np.array(evidence.probabilities), np.array(evidence.entropies), agreement)
        values.append(decision.value)
    costs = np.array([cost_of(record, exit) for record in records])
    return Labelled(
        np.array(values),
        np.array([record.small_grade for record in records], np.float64),
        np.array([record.grade for record in records], np.float64),
        costs[:, 0],
        costs[:, 1],
    )


def by_criterion(
    records: Sequence[Record], exit: ExitConfig, path: Path, cost_of: CostOf = seconds_of
) -> dict[ExitCriterion, Labelled]:
    """Every criterion over the same run, the rest as in `exit`. Raises RequestError."""
    return {
        criterion: labelled(records, replace(exit, criterion=criterion), path, cost_of) for criterion in ExitCriterion
    }


def pick(cascade: Cascade, good: np.ndarray, most_exits: bool) -> int | None:
    """[N+1] bool -> the number of early exits: the most or the fewest that are `good` and that a threshold reaches."""
    found = np.flatnonzero(good & cascade.reachable)
    if not len(found):
        return None
    return int(found[-1] if most_exits else found[0])


def with_threshold(exit: ExitConfig, cascade: Cascade, exits: int) -> ExitConfig:
    return replace(exit, enabled=True, exit_threshold=float(cascade.threshold[exits]))
