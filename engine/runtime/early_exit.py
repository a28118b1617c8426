"""SEE on the host: whether the small model's answer is good enough."""

from dataclasses import dataclass

import numpy as np

from engine.config import ExitConfig, ExitCriterion, Normalise
from engine.errors import EngineError

PERCENTILE = {ExitCriterion.Q1: 75, ExitCriterion.Q2: 50, ExitCriterion.Q3: 25}


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on, token by token of the small model's answer; enough to decide otherwise later.

    consistency: the probabilities of the same tokens in the consistency pass; None when it did not run.
    """

    probabilities: tuple[float, ...]
    entropies: tuple[float, ...]
    consistency: tuple[float, ...] | None


@dataclass(frozen=True)
class ExitDecision:
    """value: what was compared with the threshold. If the consistency pass was skipped because it could not change the
    outcome, `consistency` is None and `value` the bound that settled it."""

    criterion: ExitCriterion
    value: float
    confidence: float
    consistency: float | None
    early_exit: bool
    evidence: Evidence


def confidence(probabilities: np.ndarray) -> float:
    """[G] -> geometric mean of the probabilities of the generated tokens."""
    return float(np.exp(_logs(probabilities).mean()))


def consistency(probabilities: np.ndarray, normalise: Normalise) -> float:
    """[G] -> probability of the answer when the small model sees the pruned visual tokens."""
    if normalise is Normalise.MEAN:
        return confidence(probabilities)
    return float(np.exp(_logs(probabilities).sum()))


def quantile(probabilities: np.ndarray, criterion: ExitCriterion) -> float:
    """[G] -> the percentile of the token probabilities that Q1, Q2 or Q3 names."""
    return float(np.percentile(_checked(probabilities, "probability"), PERCENTILE[criterion]))


def entropy(entropies: np.ndarray) -> float:
    """[G] -> negated sum of the tokens' entropies, so that higher is surer."""
    return -float(_checked(entropies, "entropy").sum())


def consistency_can_matter(exit: ExitConfig, confidence: float) -> bool:
    """Whether some consistency in 0..1 leads to an exit and some other does not."""
    if not exit.needs_consistency():
        return False
    lowest, highest = (_combine(exit.criterion, confidence, bound) for bound in (0.0, 1.0))
    return lowest < exit.exit_threshold <= highest


def decide(
    exit: ExitConfig, probabilities: np.ndarray, entropies: np.ndarray, consistency_probabilities: np.ndarray | None
) -> ExitDecision:
    """[G], [G], [G] -> the decision; `consistency_probabilities` is None when the pass was not needed."""
    sureness = confidence(probabilities)
    agreement = None
    if consistency_probabilities is not None:
        agreement = consistency(consistency_probabilities, exit.normalise)
    match exit.criterion:
        case ExitCriterion.CONFIDENCE:
            value = sureness
        case ExitCriterion.Q1 | ExitCriterion.Q2 | ExitCriterion.Q3:
            value = quantile(probabilities, exit.criterion)
        case ExitCriterion.ENTROPY:
            value = entropy(entropies)
        case ExitCriterion.DECISION_SCORE | ExitCriterion.CONSISTENCY if agreement is not None:
            value = _combine(exit.criterion, sureness, agreement)
        case ExitCriterion.DECISION_SCORE | ExitCriterion.CONSISTENCY:
            assert not consistency_can_matter(exit, sureness), f"{exit.criterion} needs the consistency pass"
            highest = _combine(exit.criterion, sureness, 1.0)
            value = highest if highest < exit.exit_threshold else _combine(exit.criterion, sureness, 0.0)
    evidence = Evidence(
        tuple(map(float, probabilities)),
        tuple(map(float, entropies)),
        None if consistency_probabilities is None else tuple(map(float, consistency_probabilities)),
    )
    return ExitDecision(exit.criterion, value, sureness, agreement, value >= exit.exit_threshold, evidence)


def _combine(criterion: ExitCriterion, confidence: float, consistency: float) -> float:
    """The value of a criterion that needs the consistency."""
    return (confidence + consistency) / 2 if criterion is ExitCriterion.DECISION_SCORE else consistency


def _logs(probabilities: np.ndarray) -> np.ndarray:
    """[G] -> float64 [G]; a probability of 0 is -inf and makes every product 0."""
    with np.errstate(divide="ignore"):
        return np.log(_checked(probabilities, "probability"))


def _checked(values: np.ndarray, what: str) -> np.ndarray:
    """[G] -> float64 [G]. Raises EngineError for an empty answer and for a value that is not a number."""
    if not len(values):
        raise EngineError("the small model's answer has no tokens; generate at least one before deciding")
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise EngineError(
            f"{what} of answer token {np.flatnonzero(np.isnan(values))[0]} is not a number; "
            "check the small model's checkpoint and rebuild its engine"
        )
    return values
