"""The cascade at every threshold against asking each question one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ExitConfig, ExitCriterion
from engine.evaluation.cascade import Labelled

COARSE = st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])
SCORES = st.sampled_from([0.0, 0.3, 1.0])


@st.composite
def runs(draw: st.DrawFn) -> Labelled:
    count = draw(st.integers(1, 12))

    def column(elements: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(elements, min_size=count, max_size=count)))

    return Labelled(
        column(COARSE), column(SCORES), column(SCORES), column(st.floats(0.1, 1)), column(st.floats(0.5, 5))
    )


@given(runs())
def test_every_reachable_entry_is_what_its_threshold_does(run: Labelled) -> None:
    cascade = run.cascade()
    for exits in np.flatnonzero(cascade.reachable):
        exit = run.values >= cascade.threshold[exits]
        assert exit.sum() == exits
        assert cascade.grade[exits] == pytest.approx(np.where(exit, run.small, run.large).mean())
        cost = run.small_cost + np.where(exit, 0, run.large_cost)
        assert cascade.cost[exits] == pytest.approx(cost.mean())
    assert cascade.reachable.sum() == len(np.unique(run.values)) + 1


@given(runs())
def test_auc_counts_pairs(run: Labelled) -> None:
    right = [value for value, score in zip(run.values, run.small, strict=True) if score > 0.5]
    wrong = [value for value, score in zip(run.values, run.small, strict=True) if score <= 0.5]
    if not right or not wrong:
        assert run.auc() is None
        return
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one in right for other in wrong]
    assert run.auc() == pytest.approx(sum(pairs) / len(pairs))


def test_a_threshold_above_every_value_exits_nothing() -> None:
    certain = Labelled(np.ones(2), np.ones(2), np.ones(2), np.ones(2), np.ones(2)).cascade()
    assert certain.threshold[0] > 1
    assert ExitConfig(exit_threshold=float(certain.threshold[0])).criterion is ExitCriterion.DECISION_SCORE
