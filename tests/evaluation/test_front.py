"""What is chosen of labelled runs, against looking at every threshold of every run."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ExitConfig, ExitCriterion, GuidanceConfig
from engine.errors import RequestError
from engine.evaluation.cascade import Labelled
from engine.evaluation.front import Curve, Wish, below, front, need_alone

RUN = Labelled(
    values=np.array([0.9, 0.8, 0.8, 0.4, 0.2]),
    small=np.array([1.0, 1.0, 0.0, 0.0, 0.0]),
    large=np.array([1.0, 0.0, 1.0, 1.0, 1.0]),
    small_cost=np.full(5, 1.0),
    large_cost=np.full(5, 10.0),
)
ALONE = np.ones(5)


def curve_of(run: Labelled, name: str = "run", alone: np.ndarray | None = None, margin: float = 0.0) -> Curve:
    cascade = run.cascade()
    lost = None if alone is None else below(run, cascade, alone, margin)
    return Curve(Path(f"{name}.jsonl"), GuidanceConfig(), ExitConfig(), cascade, lost)


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
        (Wish(cost=11), 0),
        (Wish(cost=9), 1),
        (Wish(cost=8.9), 3),
        (Wish(cost=1), 5),
        (Wish(within=0.2), 3),
        (Wish(within=0.4), 4),
        (Wish(within=0.6), 5),
    ],
)
def test_wishes(wish: Wish, exits: int) -> None:
    """Two questions of equal value exit together: nothing gives exactly two exits."""
    assert wish.choose([curve_of(RUN, alone=ALONE)]).exits == exits


def test_a_wish_that_nothing_fulfils_is_refused() -> None:
    curve = curve_of(RUN, alone=ALONE)
    with pytest.raises(RequestError, match=r"wanted score on this run; the best is 0\.8"):
        Wish(score=0.95).choose([curve])
    with pytest.raises(RequestError, match=r"wanted cost on this run; the least is 1"):
        Wish(cost=0.5).choose([curve])
    with pytest.raises(RequestError, match=r"nearness on this run; the nearest is surely within 20\.00 points"):
        Wish(within=0.1).choose([curve])
    with pytest.raises(RequestError, match="no run says how the large model scores without pruning"):
        need_alone(Wish(within=0.1), None)
    need_alone(Wish(score=0.1), None)


GRADES = st.sampled_from([0.0, 0.3, 1.0])


@st.composite
def several(draw: st.DrawFn) -> tuple[list[Labelled], np.ndarray]:
    count = draw(st.integers(2, 10))

    def column(elements: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(elements, min_size=count, max_size=count)))

    values, small, cost = column(st.sampled_from([0.0, 0.5, 0.9, 1.0])), column(GRADES), column(st.floats(0.1, 1))
    runs = [Labelled(values, small, column(GRADES), cost, column(st.floats(0.5, 5))) for _ in range(3)]
    return runs, column(GRADES)


@given(several())
def test_the_front_is_what_nothing_beats(drawn: tuple[list[Labelled], np.ndarray]) -> None:
    curves = [curve_of(run, str(number)) for number, run in enumerate(drawn[0])]
    points = [(cost, grade) for curve in curves for cost, grade, _ in reached(curve)]
    found = [(point.cost, point.score) for point in front(curves)]
    for cost, grade in found:
        assert not any(c <= cost and g > grade + 1e-9 for c, g in points)
    for cost, grade in points:
        assert any(c <= cost + 1e-9 and g >= grade - 1e-9 for c, g in found)
    assert all(first[0] <= second[0] and first[1] < second[1] for first, second in pairwise(found))


@given(several(), st.floats(0, 0.5), st.floats(0, 2))
def test_the_cheapest_that_is_surely_near_enough(
    drawn: tuple[list[Labelled], np.ndarray], within: float, margin: float
) -> None:
    """By the difference to the large model alone of every question, with its standard error."""
    runs, alone = drawn
    curves = [curve_of(run, str(number), alone, margin) for number, run in enumerate(runs)]
    near = []
    for run, curve in zip(runs, curves, strict=True):
        for cost, _, threshold in reached(curve):
            lost = alone - np.where(run.values >= threshold, run.small, run.large)
            sure = lost.mean() + margin * lost.std(ddof=1) / len(lost) ** 0.5
            if abs(sure - within) < 1e-6:
                return  # as near as rounding
            if sure <= within:
                near.append(cost)
    if near:
        assert Wish(within=within).choose(curves).cost == pytest.approx(min(near))
    else:
        with pytest.raises(RequestError):
            Wish(within=within).choose(curves)


def test_of_equal_scores_the_cheaper_run_is_chosen() -> None:
    dear, cheap = curve_of(RUN, "dear"), curve_of(replace(RUN, large_cost=np.full(5, 2.0)), "cheap")
    for wish in (Wish(score=0.8), Wish(exit_ratio=0.2), Wish(cost=20)):
        chosen = wish.choose([dear, cheap])
        assert chosen.curve is cheap
        assert chosen.exit().criterion is ExitCriterion.DECISION_SCORE
        assert chosen.exit().exit_threshold == cheap.cascade.threshold[chosen.exits]


def reached(curve: Curve) -> list[tuple[float, float, float]]:
    """Cost, grade and threshold of every point."""
    cascade = curve.cascade
    return [(cascade.cost[i], cascade.grade[i], cascade.threshold[i]) for i in np.flatnonzero(cascade.reachable)]
