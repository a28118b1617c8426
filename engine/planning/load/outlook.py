"""What a simulation says: percentiles, how far off they may be, and how busy the engines are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.planning.load.course import Course, Size
from engine.planning.load.simulate import Answering, World
from engine.planning.load.times import PairTimes
from engine.planning.load.traffic import Traffic

PERCENTILES = (50, 95, 99)
GROUPS = 10
"""Of consecutive questions, each with percentiles of its own: how much those differ says how sure the whole one is."""
STUDENT = 2.262
"""Of a 95 % interval over ten groups."""
WARM_UP = 0.1
"""Share of the questions, the first ones, that are not counted: nobody ran before them."""
LEAST, MOST = 2_000, 200_000
"""Questions."""
FULL = 0.995
"""Utilisation from which on more come than are answered: what waits only grows."""
ENOUGH = 0.05
"""Share of a percentile within which it is to be sure."""


@dataclass(frozen=True)
class Estimate:
    """seconds: with how far off they may be, at 95 % confidence."""

    seconds: float
    error: float

    def is_sure(self) -> bool:
        return self.error <= ENOUGH * self.seconds


@dataclass(frozen=True)
class Outlook:
    """first, last: seconds to the first text and to the end of an answer, by percentile.

    utilisation: share of the time in which there was something to do; refused: share of the questions. keeps_up:
    whether as many are answered as come.
    """

    first: Mapping[int, Estimate]
    last: Mapping[int, Estimate]
    utilisation: float
    refused: float
    questions: int
    keeps_up: bool


def look_ahead(
    traffic: Traffic,
    courses: Mapping[Size, Course],
    times: PairTimes,
    answering: Answering,
    least: int = LEAST,
    most: int = MOST,
    is_enough: Callable[[Outlook], bool] = lambda outlook: False,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Outlook:
    """Simulate until the 95th percentiles are sure to 5 %, or it is enough, but at most so many questions."""
    world, arrivals, count = World(times, answering), traffic.arrivals(courses), least
    while True:
        world.run(arrivals, count)
        outlook = _outlook(world)
        on_progress(min(1.0, count / most))
        is_sure = outlook.first[95].is_sure() and outlook.last[95].is_sure()
        if count >= most or is_sure or not outlook.keeps_up or is_enough(outlook):
            on_progress(1.0)
            return outlook
        count = min(most, 2 * count)


def _outlook(world: World) -> Outlook:
    served, ended = world.served, len(world.served.last)
    start = int(WARM_UP * ended)
    first, last = (_percentiles(values[start:]) for values in (served.first, served.last))
    utilisation = 1 - served.idle / world.now if world.now else 0.0
    return Outlook(
        first,
        last,
        utilisation,
        served.refused / max(1, ended + served.refused),
        ended + served.refused,
        not served.refused and utilisation < FULL,
    )


def _percentiles(values: Sequence[float]) -> dict[int, Estimate]:
    array = np.array(values)
    groups = [np.percentile(group, PERCENTILES) for group in np.array_split(array, GROUPS) if len(group)]
    errors = STUDENT * np.std(groups, axis=0, ddof=1) / np.sqrt(len(groups)) if len(groups) > 1 else np.full(3, np.inf)
    whole = np.percentile(array, PERCENTILES) if len(array) else np.full(3, np.nan)
    return {
        share: Estimate(float(value), float(error))
        for share, value, error in zip(PERCENTILES, whole, errors, strict=True)
    }
