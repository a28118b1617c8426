"""What several labelled runs of the same questions offer: score and cost of every criterion and threshold, the front of
those that nothing beats in both, and the one that is wished for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.config import ExitConfig, GuidanceConfig
from engine.errors import RequestError, Setting
from engine.evaluation.cascade import Cascade, Labelled, pick, with_threshold
from engine.evaluation.record import Record, RunSettings

TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """One run by one criterion. below [N+1]: how far the score of so many exits is surely below the large model's
    without pruning (mean difference, and `margin` standard errors of it); None where that was not run.
    """

    path: Path
    guidance: GuidanceConfig
    exit: ExitConfig
    cascade: Cascade
    below: np.ndarray | None

    def name(self) -> str:
        return f"{self.path.stem}, {self.exit.criterion.replace('_', ' ')}"


@dataclass(frozen=True)
class Point:
    """A threshold of a curve: so many questions exit."""

    curve: Curve
    exits: int

    @property
    def score(self) -> float:
        return float(self.curve.cascade.grade[self.exits])

    @property
    def cost(self) -> float:
        return float(self.curve.cascade.cost[self.exits])

    @property
    def exit_ratio(self) -> float:
        return float(self.curve.cascade.exit_ratio()[self.exits])

    def exit(self) -> ExitConfig:
        return with_threshold(self.curve.exit, self.curve.cascade, self.exits)


@dataclass(frozen=True)
class Wish:
    """One of them is given. exit_ratio, score: at least this; cost: at most, a question; within: at most so much below
    the score of the large model without pruning.
    """

    exit_ratio: float | None = None
    score: float | None = None
    cost: float | None = None
    within: float | None = None

    def exits(self, curve: Curve) -> int | None:
        """How many questions exit: the fewest that give the ratio, or cost so little, the most that score so much."""
        cascade = curve.cascade
        if self.exit_ratio is not None:
            return pick(cascade, cascade.exit_ratio() >= self.exit_ratio - TINY, most_exits=False)
        if self.cost is not None:
            return pick(cascade, cascade.cost <= self.cost + TINY, most_exits=False)
        if self.score is not None:
            return pick(cascade, cascade.grade >= self.score - TINY, most_exits=True)
        assert self.within is not None and curve.below is not None, "asked for where the large model was run alone"
        return pick(cascade, curve.below <= self.within + TINY, most_exits=True)

    def choose(self, curves: Sequence[Curve]) -> Point:
        """Of each curve what is wished for; of those the cheapest, or the best where cost or exits were given.

        Raises RequestError for what no threshold gives.
        """
        found = [Point(curve, exits) for curve in curves if (exits := self.exits(curve)) is not None]
        if not found:
            raise RequestError(f"no threshold gives the wanted {self._best(curves)}")
        if self.exit_ratio is None and self.cost is None:
            return min(found, key=lambda point: (point.cost, -point.score))
        return max(found, key=lambda point: (point.score, -point.cost))

    def _best(self, curves: Sequence[Curve]) -> str:
        """What there is instead."""
        cascades = [curve.cascade for curve in curves]
        if self.exit_ratio is not None:
            return "exit ratio; the most is 1"
        if self.cost is not None:
            return f"cost on this run; the least is {min(cascade.cost.min() for cascade in cascades):.4g}"
        if self.score is not None:
            best = max(cascade.grade[cascade.reachable].max() for cascade in cascades)
            return f"score on this run; the best is {best:.4g}"
        reached = [curve.below[curve.cascade.reachable] for curve in curves if curve.below is not None]
        nearest = min(lost.min() for lost in reached)
        return f"nearness on this run; the nearest is surely within {100 * nearest:.2f} points"


def below(run: Labelled, cascade: Cascade, alone: np.ndarray, margin: float) -> np.ndarray:
    """[N] -> [N+1]: see `Curve`. alone: grades of the large model without pruning."""
    order, count = np.argsort(-run.values, kind="stable"), len(alone)
    kept, left = (run.large - alone)[order], (run.small - alone)[order]
    squares = (kept**2).sum() + np.concatenate([[0], np.cumsum(left**2 - kept**2)])
    lost = alone.mean() - cascade.grade
    variance = np.maximum(0, squares / count - lost**2) / max(1, count - 1)
    found: np.ndarray = lost + margin * np.sqrt(variance)
    return found


def grades_alone(runs: Sequence[tuple[Path, RunSettings, Sequence[Record]]]) -> dict[str, float] | None:
    """By question, of the large model without pruning; None where no run has it."""
    for _, settings, records in runs:
        if not settings.guidance.enabled:
            return {record.id: record.grade for record in records if record.grade is not None}
    return None


def check_alike(runs: Sequence[tuple[Path, RunSettings, Sequence[Record]]]) -> None:
    """Raises RequestError unless all runs are of the same questions."""
    first, _, records = runs[0]
    for path, _, others in runs[1:]:
        if [record.id for record in records] != [record.id for record in others]:
            raise RequestError(f"{path} is not of the questions of {first}; let sgl evaluate ask both the same")


def need_alone(wish: Wish, alone: dict[str, float] | None) -> None:
    """Raises RequestError."""
    if wish.within is not None and alone is None:
        raise RequestError(
            "no run says how the large model scores without pruning; add one of sgl evaluate with ",
            Setting("label"),
            " and ",
            Setting("no_guidance"),
        )


def front(curves: Sequence[Curve]) -> list[Point]:
    """Points that are better than every cheaper one, from the cheapest on."""
    points = sorted(_points(curves), key=lambda point: (point.cost, -point.score))
    found: list[Point] = []
    for point in points:
        if not found or point.score > found[-1].score + TINY:
            found.append(point)
    return found


def _points(curves: Sequence[Curve]) -> Iterator[Point]:
    for curve in curves:
        yield from (Point(curve, int(exits)) for exits in np.flatnonzero(curve.cascade.reachable))
