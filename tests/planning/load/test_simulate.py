"""The simulated server: against queueing theory, and turns taken many at once against each on its own."""

from collections.abc import Iterator

import numpy as np
import pytest

from engine.planning.load.course import Course, Reading, Run, Size
from engine.planning.load.outlook import look_ahead
from engine.planning.load.simulate import Answering, Arrival, World
from engine.planning.load.times import Line, ModelTimes, PairTimes
from engine.planning.load.traffic import Kind, Traffic
from engine.runtime.loop import OUTSIDE_THREADS

SIZE = Size((), 1, 1, 1)
NOTHING = ModelTimes((), (), ())


def seconds(prompt: float, step: float = 0.0) -> ModelTimes:
    return ModelTimes((Line(step),), (Line(prompt),), (Line(0.005),))


def alone(large_tokens: int = 1) -> Course:
    """The large model alone, without a picture: one run, and steps."""
    return Course(None, Reading((), (Run(1.0),), 0.0, 1), (), 0, large_tokens)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_one_question_at_a_time_waits_as_queueing_theory_says(load: float) -> None:
    """M/D/1: Poisson arrivals, one server, every service as long: a mean wait of load / (2 (1 - load)) services."""
    traffic = Traffic((Kind(SIZE),), rate=load)
    world = World(PairTimes(NOTHING, seconds(1.0)), Answering(1, 10_000))
    world.run(traffic.arrivals({SIZE: alone()}), 60_000)
    waits = np.array(world.served.last) - 1.0
    means = [group.mean() for group in np.array_split(waits, 20)]
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    expected = load / (2 * (1 - load))
    assert error < 0.05 * expected
    assert abs(waits.mean() - expected) < 3 * error
    assert (waits < 1e-9).mean() == pytest.approx(1 - load, abs=0.01)
    assert 1 - world.served.idle / world.now == pytest.approx(load, abs=0.01)


def test_lost_questions_follow_erlang() -> None:
    """M/D/c/c: c at once, none may wait. As long as they are read beside each other, Erlang's formula B says how many
    are lost, whatever the services are distributed like."""
    places, load = OUTSIDE_THREADS, 2.0
    # Opening pictures is all that they do: it is what happens beside each other.
    outside = ModelTimes((), (Line(),), (), outside=1.0)
    traffic = Traffic((Kind(SIZE),), rate=load)
    world = World(PairTimes(NOTHING, outside), Answering(places, 0))
    world.run(traffic.arrivals({SIZE: alone()}), 40_000)
    terms = np.cumprod([1.0, *(load / n for n in range(1, places + 1))])
    assert world.served.refused / 40_000 == pytest.approx(terms[-1] / terms.sum(), rel=0.03)


def test_questions_that_step_together_share_their_steps() -> None:
    """Eight come at once: the last token of all comes after one prompt each and as many steps as one needs."""
    world = World(PairTimes(NOTHING, seconds(1.0, step=10.0)), Answering(8, 8))
    course = alone(large_tokens=11)
    assert not world.run(iter([Arrival(0.0, course)] * 8), 9)
    # Prompts follow each other a turn at a time, with a step of the others in each.
    assert max(world.served.last) == 8 * 1.0 + 7 * 10.0 + 10 * 10.0
    assert sorted(world.served.first) == [1.0 * n + 10.0 * (n - 1) for n in range(1, 9)]


class OneByOne(World):
    """Each turn on its own."""

    def _alike(self) -> int:
        return 1


def random_course(rng: np.random.Generator) -> Course:
    def reading() -> Reading:
        pictures = tuple((Run(1.0),) * int(rng.integers(1, 8)) for _ in range(int(rng.integers(0, 3))))
        prompt = tuple(Run(float(rows), 3.0 * float(rows)) for rows in rng.integers(1, 512, int(rng.integers(1, 6))))
        return Reading(pictures, prompt, float(rng.integers(1, 2000)), int(rng.integers(1, 20)))

    small, large = (int(tokens) for tokens in rng.integers(1, 30, 2))
    guide, agreement = rng.random() < 0.8, rng.random() < 0.5
    return Course(
        reading() if guide else None,
        reading(),
        (Run(50.0),) if guide and agreement else (),
        small,
        large,
        int(rng.integers(0, min(small, large))),
    )


@pytest.mark.parametrize("seed", range(40))
def test_turns_taken_together_are_those_taken_one_by_one(seed: int) -> None:
    """Any mixture of questions, limits and costs: everybody ends when he ends otherwise."""
    rng = np.random.default_rng(seed)
    courses = [random_course(rng) for _ in range(6)]
    arrivals, now = [], 0.0
    for _ in range(80):
        now += float(rng.exponential(rng.choice([0.05, 0.3, 2.0])))
        exits, known = (rng.random(2) < 0.4).tolist()
        arrivals.append(Arrival(now, courses[int(rng.integers(6))], exits, known))
    answering = Answering(int(rng.integers(1, 9)), int(rng.integers(0, 40)), [None, 25][int(rng.integers(2))])
    turn, resume = ([0.0, 1e-5][index] for index in rng.integers(0, 2, 2))

    def model(scale: float) -> ModelTimes:
        step = (Line(scale * 1e-3, scale * 1e-4, scale * 1e-8),)
        extend = Line(scale * 1e-3, scale * 1e-4), Line(scale * 2e-2)
        return ModelTimes(step, extend, (Line(scale * 5e-3),), outside=1e-3)

    worlds = [kind(PairTimes(model(1), model(3), turn, resume), answering) for kind in (World, OneByOne)]
    for world in worlds:
        world.run(iter(arrivals), len(arrivals) + 1)
    together, alone_ = (world.served for world in worlds)
    assert together.refused == alone_.refused
    for name in ("arrived", "first", "last"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone_, name), rtol=1e-9, atol=1e-6)


def test_a_percentile_says_how_far_off_it_may_be() -> None:
    """Of twenty runs with other seeds, about all have the percentile of a much longer run within their error."""
    times = PairTimes(NOTHING, seconds(1.0))

    def outlook(seed: int, questions: int) -> tuple[float, float]:
        traffic = Traffic((Kind(SIZE),), rate=0.6, seed=seed)
        found = look_ahead(traffic, {SIZE: alone()}, times, Answering(1, 10_000), questions, questions)
        assert found.questions == questions
        return found.last[95].seconds, found.last[95].error

    truth, error = outlook(99, 200_000)
    assert error < 0.02 * truth
    runs = [outlook(seed, 4000) for seed in range(20)]
    inside = [abs(found - truth) <= error + 0.02 * truth for found, error in runs]
    assert sum(inside) >= 17


def test_what_does_not_keep_up_is_found_out() -> None:
    def outlook(rate: float) -> bool:
        traffic = Traffic((Kind(SIZE),), rate=rate)
        return look_ahead(traffic, {SIZE: alone()}, PairTimes(NOTHING, seconds(1.0)), Answering(1, 256)).keeps_up

    assert outlook(0.9)
    assert not outlook(1.1)
    assert not outlook(3.0)


def endless(course: Course) -> Iterator[Arrival]:
    now = 0.0
    while True:
        yield Arrival(now, course)
        now += 1.0


def test_a_run_goes_on_where_the_last_one_ended() -> None:
    whole, parts = (World(PairTimes(NOTHING, seconds(0.7, step=0.1)), Answering(4, 100)) for _ in range(2))
    whole.run(endless(alone(5)), 100)
    arrivals = endless(alone(5))
    for ends in (1, 30, 31, 100):
        parts.run(arrivals, ends)
    assert parts.served.last == whole.served.last
