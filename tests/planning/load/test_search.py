"""Goals, the fewest replicas that meet them, and the front."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.config import ExitConfig
from engine.planning.load.course import Course, Reading, Run, Size
from engine.planning.load.goal import Figure, Goal, is_met, read_goal
from engine.planning.load.outlook import Estimate, Outlook
from engine.planning.load.search import Found, Terms, Way, fewest, front
from engine.planning.load.service import Service
from engine.planning.load.times import Line, ModelTimes, PairTimes
from engine.planning.load.traffic import Kind, Traffic

SIZE = Size((), 1, 1, 1)
WAY = Way(None, ExitConfig(enabled=False), 1, Traffic((Kind(SIZE),), rate=3.0), 1.0)


def test_goals_are_read_as_they_are_written() -> None:
    assert read_goal("p95 ttft 300ms") == Goal(95, Figure.TTFT, 0.3)
    assert read_goal(" p50 answer < 2.5 s") == Goal(50, Figure.ANSWER, 2.5)
    assert str(read_goal("p99 answer <=1s")) == "p99 answer 1000ms"
    for text in ("p90 ttft 1s", "p95 ttft", "ttft 3s", "p95 ttft 0s", "p95 ttft -1s", "p95 ttft 1h", "", "p95ttft 1s"):
        with pytest.raises(ValueError, match="is no goal such as 'p95 ttft 300ms'"):
            read_goal(text)


def terms(*goals: str) -> Terms:
    """Questions of a second each, one at a time."""
    times = PairTimes(ModelTimes((), (), ()), ModelTimes((), (Line(1.0),), ()))
    course = Course(None, Reading((), (Run(1.0),), 0.0, 1), (), 0, 1)
    service: Any = SimpleNamespace(times=times, kv_memory=None, courses=lambda *_: {SIZE: course}, each=1, unit="GPU")
    return Terms(cast(Service, service), tuple(map(read_goal, goals)), 256, 1)


def test_without_a_goal_the_engines_are_busy_for_at_most_four_fifths() -> None:
    """Three seconds of work a second: four replicas would be busy for three quarters of the time."""
    found = fewest(terms(), WAY)
    assert found.replicas == 4
    assert found.outlook.utilisation == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("goal", ["p95 answer 2.5s", "p50 ttft 1.01s", "p99 ttft 9s"])
def test_one_replica_fewer_would_not_do(goal: str) -> None:
    asked = terms(goal)
    found = fewest(asked, WAY)
    assert found.replicas is not None
    assert is_met(asked.goals, found.outlook)
    if found.replicas > 3:  # with three, they never end
        worse = asked.look(WAY, found.replicas - 1, 4_000, 4_000)
        assert not is_met(asked.goals, worse)


def test_a_goal_that_nothing_meets_is_said_so() -> None:
    assert fewest(terms("p50 answer 999ms"), WAY).replicas is None


def test_a_front_has_what_no_other_beats() -> None:
    estimate = Estimate(1.0, 0.0)
    outlook = Outlook(dict.fromkeys((50, 95, 99), estimate), dict.fromkeys((50, 95, 99), estimate), 0.5, 0, 1, True)

    def found(replicas: int | None, quality: float, last: float = 1.0) -> Found:
        late = replace(outlook, last=dict.fromkeys((50, 95, 99), Estimate(last, 0.0)))
        return Found(replace(WAY, quality=quality), replicas, late)

    cheap, faster = found(1, 0.3, 2.0), found(1, 0.3, 1.0)
    better, best, none = found(2, 0.5), found(4, 0.9), found(None, 1.0)
    assert front([best, found(3, 0.5), cheap, found(2, 0.2), faster, none, better]) == [faster, better, best]
    assert front([none]) == []
