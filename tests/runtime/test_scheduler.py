"""The scheduler's policy, on a virtual clock and with models that are made up."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError, ModelFailed, Overloaded, QuestionCancelled, QuestionTimedOut, RequestError
from engine.runtime.scheduler import GIB, PATIENCE
from tests.runtime.simulation import Panic, Phase, Script, World

KV_MEMORY = 10


# Made once: a strategy that is made anew for each draw takes longer than what is tested.
PHASES = st.builds(
    Phase,
    role=st.sampled_from(["small", "large"]),
    outside=st.integers(0, 4),
    encode=st.integers(0, 3),
    size=st.integers(0, KV_MEMORY + 1),
    prefill=st.sampled_from([1, 2, 20]),
    steps=st.sampled_from([0, 1, 3, 20]),
    bad_step=st.sampled_from([None, None, None, 0, 2]),
    spare=st.booleans(),
)
HANGS = Phase(outside=None)
SCRIPT = {
    "phases": st.lists(PHASES, min_size=1, max_size=3).map(tuple),
    "arrives": st.integers(0, 20),
    "raises": st.sampled_from([None, None, None, EngineError("no"), KeyError("bug"), Panic("rust")]),
    "stubborn": st.sampled_from([False, False, False, True]),
}
SCRIPTS = st.one_of(
    st.builds(Script, **SCRIPT),
    st.builds(Script, cancelled=st.integers(0, 40), **SCRIPT),
    st.builds(Script, seconds=st.floats(0.01, 20), **SCRIPT),
    st.builds(Script, **SCRIPT | {"phases": st.just((HANGS,))}, seconds=st.floats(0.01, 20)),
    st.builds(Script, **SCRIPT | {"phases": st.tuples(PHASES, st.just(HANGS))}, cancelled=st.integers(0, 40)),
)
"""Whatever hangs is cancelled or has a deadline."""
FAILURES = st.sampled_from([RuntimeError("engine"), MemoryError(), EngineError("no memory"), AssertionError()])


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Thousands of questions fail here, each with a traceback in the log."""
    log = logging.getLogger("engine.runtime.scheduler")
    log.disabled = True
    yield
    log.disabled = False


@settings(max_examples=200, derandomize=True)
@given(
    st.lists(SCRIPTS, min_size=1, max_size=10),
    st.dictionaries(st.integers(1, 150), FAILURES, max_size=8),
    st.integers(1, 5),
    st.integers(0, 12),
    st.sampled_from([None, KV_MEMORY]),
    st.integers(1, 3),
)
def test_nothing_is_lost(
    asked: list[Script],
    fails: dict[int, Exception],
    max_running: int,
    max_waiting: int,
    kv_memory: int | None,
    places: int,
) -> None:
    """Arrivals, cancellations, deadlines and failures in any order: each question ends once, as it must.

    What is checked at each moment is in `simulation`.
    """
    World(max_running, max_waiting, kv_memory, places, fails).run(asked)


@settings(max_examples=50, derandomize=True)
@given(st.lists(SCRIPTS, min_size=1, max_size=8), st.integers(1, 4), st.sampled_from([None, KV_MEMORY]))
def test_a_question_does_what_it_does_alone(asked: list[Script], max_running: int, kv_memory: int | None) -> None:
    """Without anything that depends on time, every outcome is the one that the question has alone."""
    asked = [replace(script, cancelled=None, seconds=None, stubborn=False) for script in asked]
    asked = [replace(script, phases=tuple(part for part in script.phases if part != HANGS)) for script in asked]
    together = World(max_running, 100, kv_memory)
    together.run(asked)
    for one in together.asked:
        alone = World(1, 100, kv_memory)
        alone.run([replace(one.script, arrives=0)])
        outcome, other = one.outcomes[0], alone.asked[0].outcomes[0]
        assert type(outcome) is type(other)
        assert isinstance(outcome, EngineError) or (outcome == f"answer {one.number}" and other == "answer 0")


@settings(max_examples=50, derandomize=True)
@given(st.lists(SCRIPTS, min_size=1, max_size=8))
def test_the_engines_seconds_are_shared_out(asked: list[Script]) -> None:
    world = World(4)
    good = [replace(script, phases=tuple(replace(part, bad_step=None) for part in script.phases)) for script in asked]
    world.run(good)
    opens = sum(part.size >= 0 for one in world.asked for part in one.script.phases)
    shared = sum(one.task.meter.seconds for one in world.asked if one.task is not None)
    assert shared <= world.engine_seconds
    assert world.engine_seconds - shared <= 2 * 0.125 * opens  # a slot's size, and opening it, are no run


def test_a_short_question_behind_a_long_answer_ends_first() -> None:
    world = World(2)
    world.run([Script((Phase(steps=500),)), Script((Phase(steps=5),), arrives=3)])
    assert [one.ended for one in world.asked][1] < 3 + 10  # type: ignore[operator]
    assert world.asked[0].ended > 490  # type: ignore[operator]


def test_a_short_question_behind_long_prompts_ends_first() -> None:
    """Though the model serves them in their order, a prompt waits for `PATIENCE` runs of others at most."""
    world = World(4)
    long = Script((Phase(prefill=200, steps=5),))
    world.run([long, long, long, Script((Phase(prefill=2, steps=5),), arrives=5)])
    assert world.asked[3].ended < 5 + 3 * (PATIENCE + 1) + 5 + 2  # type: ignore[operator]
    assert all(one.ended > 200 for one in world.asked[:3])  # type: ignore[operator]


def test_a_running_answer_is_delayed_by_one_run_for_each_token() -> None:
    world = World(8)
    world.run([Script((Phase(steps=100),)), *[Script((Phase(prefill=30, encode=30),), arrives=4)] * 7])
    turns = [kind for kind, _, owners in world.events if kind == "run" or world.asked[0] in owners]
    first, last = turns.index("step"), len(turns) - turns[::-1].index("step")
    assert turns[first:last].count("step") == 100
    between = "".join("s" if kind == "step" else "r" for kind in turns[first:last])
    assert "rr" not in between


def test_the_small_model_comes_first_but_not_for_ever() -> None:
    """A large model's prompt among ever new questions for the small one has every ninth run."""
    world = World(100)
    world.run(
        [
            Script((Phase("large", prefill=5),)),
            *[Script((Phase(prefill=1, steps=0),), arrives=tick) for tick in range(80)],
        ]
    )
    runs = [role for kind, role, _ in world.events if kind == "run"]
    large = [index for index, role in enumerate(runs) if role == "large"]
    assert all(after - before <= PATIENCE + 1 for before, after in pairwise(large))
    assert large[0] > 0 or runs[0] == "large"
    assert len(large) == 5


def test_within_a_model_whoever_came_first_is_served_first() -> None:
    world = World(5)
    world.run([Script((Phase(prefill=2, steps=0),)) for _ in range(5)])
    served = [owners[0].number for kind, _, owners in world.events if kind == "run"]
    assert served == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_step_that_fails_fails_for_those_alone_whom_it_is_about() -> None:
    """One question breaks every step that it is in."""
    world = World(4)
    language = world.models["small"].language
    works = language.step

    def step(slots, tokens, scored):  # type: ignore[no-untyped-def]
        for slot in slots:
            if language.owners[slot].number == 2 and tokens[list(slots).index(slot)] == 3:
                language.owners[slot].doomed = True
                raise RuntimeError("a broken row")
        return works(slots, tokens, scored)

    language.step = step
    world.run([Script((Phase(steps=8),)) for _ in range(4)])
    assert [isinstance(one.outcomes[0], ModelFailed) for one in world.asked] == [False, False, True, False]
    assert "a broken row" in str(world.asked[2].outcomes[0])


def test_a_question_that_can_never_fit_is_refused_at_once() -> None:
    """And the next one is let in, though nothing else happens."""
    world = World(1, kv_memory=2 * GIB)
    world.run([Script((Phase(encode=1, size=3 * GIB),)), Script((Phase(size=2 * GIB),))])
    refused, answered = (one.outcomes[0] for one in world.asked)
    assert isinstance(refused, RequestError)
    assert "may take 3.00 GiB, and all questions together have 2.00; ask for fewer max_new_tokens" in str(refused)
    assert answered == "answer 1"


def test_a_large_question_is_not_overtaken_for_ever() -> None:
    """It waits for memory, and who came later for it."""
    world = World(100, kv_memory=10)
    small = [Script((Phase(size=1, steps=9),), arrives=tick) for tick in range(60)]
    world.run([Script((Phase(size=6, steps=5),)), Script((Phase(size=10),), arrives=1), *small])
    assert world.asked[1].ended < 20  # type: ignore[operator]


def test_too_many_are_refused() -> None:
    world = World(max_running=2, max_waiting=3)
    asked = [world.ask(Script((Phase(outside=1),))) for _ in range(7)]
    for one in asked[5:]:
        assert isinstance(one.outcomes[0], Overloaded)
        assert "2 questions are being answered and 3 wait already; ask again later" in str(one.outcomes[0])
    world.run([])
    assert [one.outcomes[0] for one in asked[:5]] == [f"answer {n}" for n in range(5)]


def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    world = World(1)
    world.run([Script((Phase(outside=None),), seconds=2), Script(seconds=1), Script(seconds=50)])
    running, waiting, patient = (one.outcomes[0] for one in world.asked)
    assert isinstance(running, QuestionTimedOut) and isinstance(waiting, QuestionTimedOut)
    assert patient == "answer 2"


def test_everybody_is_told_when_all_ends() -> None:
    world = World(2)
    asked = [world.ask(Script((Phase(outside=None),), stubborn=number == 0)) for number in range(5)]
    error = QuestionCancelled("all ends")
    world.scheduler.cancel_all(error)
    assert [one.outcomes for one in asked] == [[error]] * 5
    assert world.scheduler.is_idle()
    assert not world.scheduler.iterate()
