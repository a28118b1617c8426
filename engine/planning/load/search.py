"""The fewest replicas that meet a goal, for each way to serve, and which ways no other one beats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config import ExitConfig, GuidanceConfig
from engine.planning.load.goal import Goal, is_met, is_settled
from engine.planning.load.outlook import Outlook, look_ahead
from engine.planning.load.service import Service
from engine.planning.load.simulate import Answering
from engine.planning.load.traffic import Traffic

MOST_REPLICAS = 4096
SEARCH_LEAST, SEARCH_MOST = 500, 4_000
"""Questions of each simulation of a search."""


@dataclass(frozen=True)
class Way:
    """How a pair is served. guidance: resolved; None prunes nothing. quality: score of a labelled run, or the average
    retention of what the large model answers; larger is better. threshold: of the exits, where a run says it."""

    guidance: GuidanceConfig | None
    exit: ExitConfig
    max_running: int
    traffic: Traffic
    quality: float
    threshold: float | None = None


@dataclass(frozen=True)
class Found:
    """replicas: the fewest; None where not even the most that are tried meet the goal. outlook: of one of them."""

    way: Way
    replicas: int | None
    outlook: Outlook


@dataclass(frozen=True)
class Terms:
    """What holds for every way. most_new: tokens of an answer at most."""

    service: Service
    goals: tuple[Goal, ...]
    max_waiting: int
    most_new: int

    def look(
        self,
        way: Way,
        replicas: int,
        least: int = SEARCH_LEAST,
        most: int = SEARCH_MOST,
        is_enough: Callable[[Outlook], bool] = lambda outlook: False,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> Outlook:
        courses = self.service.courses(way.traffic.kinds, way.guidance, way.exit, self.most_new)
        answering = Answering(way.max_running, self.max_waiting, self.service.kv_memory)
        shared = way.traffic.shared(replicas)
        return look_ahead(shared, courses, self.service.times, answering, least, most, is_enough, on_progress)


def fewest(terms: Terms, way: Way) -> Found:
    """By doubling and halving: more replicas never make answers slower."""
    tried: dict[int, Outlook] = {}

    def meets(replicas: int) -> bool:
        if replicas not in tried:
            tried[replicas] = terms.look(way, replicas, is_enough=lambda outlook: is_settled(terms.goals, outlook))
        return is_met(terms.goals, tried[replicas])

    # Where a question that is about alone takes too long, no number of replicas helps.
    if not meets(MOST_REPLICAS):
        return Found(way, None, tried[MOST_REPLICAS])
    high = 1
    while not meets(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return Found(way, high, tried[high])


def search(terms: Terms, ways: Sequence[Way], on_progress: Callable[[float], None]) -> list[Found]:
    found = []
    for index, way in enumerate(ways):
        found.append(fewest(terms, way))
        on_progress((index + 1) / len(ways))
    return found


def front(found: Sequence[Found]) -> list[Found]:
    """Those that no other one beats, in cost or quality and not behind in the other; the cheapest first.

    Of equals, the one whose answers are there earlier.
    """
    met = [(one.replicas, one) for one in found if one.replicas is not None]
    met.sort(key=lambda pair: (pair[0], -pair[1].way.quality, pair[1].outlook.last[95].seconds))
    best: list[Found] = []
    for _, one in met:
        if not best or one.way.quality > best[-1].way.quality:
            best.append(one)
    return best
