"""The cascade at every threshold against asking each question one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cli.calibrate import Wish
from engine.config import ExitConfig, ExitCriterion
from engine.errors import RequestError
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
        seconds = run.small_seconds + np.where(exit, 0, run.large_seconds)
        assert cascade.seconds[exits] == pytest.approx(seconds.mean())
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


RUN = Labelled(
    values=np.array([0.9, 0.8, 0.8, 0.4, 0.2]),
    small=np.array([1.0, 1.0, 0.0, 0.0, 0.0]),
    large=np.array([1.0, 0.0, 1.0, 1.0, 1.0]),
    small_seconds=np.full(5, 1.0),
    large_seconds=np.full(5, 10.0),
)


@pytest.mark.parametrize(
    ("wish", "exits"),
    [
        (Wish(exit_ratio=0.0), 0),
        (Wish(exit_ratio=0.2), 1),
        (Wish(exit_ratio=0.4), 3),
        (Wish(exit_ratio=1.0), 5),
        (Wish(score=0.8), 3),
        (Wish(score=0.2), 5),
        (Wish(score=0.5), 4),
        (Wish(seconds=11), 0),
        (Wish(seconds=9), 1),
        (Wish(seconds=8.9), 3),
        (Wish(seconds=1), 5),
    ],
)
def test_wishes(wish: Wish, exits: int) -> None:
    """Two questions of equal value exit together: nothing gives exactly two exits."""
    assert wish.exits(RUN.cascade()) == exits


def test_a_wish_that_nothing_fulfils_is_refused() -> None:
    with pytest.raises(RequestError, match=r"wanted score on this run; the best is 0.8"):
        Wish(score=0.95).exits(RUN.cascade())
    with pytest.raises(RequestError, match=r"wanted seconds on this run; the best is 1"):
        Wish(seconds=0.5).exits(RUN.cascade())


def test_a_threshold_above_every_value_exits_nothing() -> None:
    certain = Labelled(np.ones(2), np.ones(2), np.ones(2), np.ones(2), np.ones(2)).cascade()
    assert certain.threshold[0] > 1
    assert ExitConfig(exit_threshold=float(certain.threshold[0])).criterion is ExitCriterion.DECISION_SCORE
