"""A step copies nothing that grows with the engine: it runs where its buffers are, and they stay where they are."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.bindings import past_kv, present_kv
from engine.runtime.executor_onnxruntime_session import Place, Session
from tests.oracle import Pair, build_pair
from tests.prefilled import Prefilled, step
from tests.runtime.test_language import PRUNE_LAYERS, make_prompt

PROMPTS = (make_prompt(23, list(range(4, 16))), make_prompt(31, [2, 3, 20, 21], seed=1))
WARM_UP, STEPS = 3, 8
SMALL = 16 * 1024
"""Bytes: of a few rows' tokens, angles and lengths. The keys of a place in one layer are twice as much."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("copies"), "qwen2", PRUNE_LAYERS)


class Bound:
    """What was bound, each time, and where it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.places: dict[str, Place] = {}
        for verb in ("bind_input", "bind_output"):
            monkeypatch.setattr(Session, verb, self._spied(getattr(Session, verb)))

    def _spied(self, bind: Any) -> Any:
        def run(session: Session, name: str, array: np.ndarray, place: Place) -> None:
            self.names.append(name)
            self.places[name] = place
            bind(session, name, array, place)

        return run


def prefilled(pair: Pair, count: int) -> list[Prefilled]:
    return [Prefilled(pair.engine, prompt, 2 * STEPS, prune_layers=PRUNE_LAYERS) for prompt in PROMPTS[:count]]


def go_on(questions: Sequence[Prefilled], steps: int) -> None:
    for token in range(steps):
        step(questions, token, [False] * len(questions))


@pytest.mark.parametrize("count", [1, 2])
def test_steps_of_the_same_questions_bind_nothing_anew(
    built: Pair, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = Bound(monkeypatch)
    questions = prefilled(built, count)
    go_on(questions, 1)
    executor: Any = built.engine.executor
    assert bound.places.keys() == executor.inputs.keys() | executor.outputs.keys()
    bound.names.clear()
    go_on(questions, STEPS)
    assert not bound.names
    assert not executor._copies, "inputs are of the types that the engine reads"
    for question in questions:
        question.close()


def test_keys_and_values_are_appended_where_they_are(built: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine reads as past is what it writes as present, for one prompt's rows as for a step."""
    bound = Bound(monkeypatch)
    questions = prefilled(built, 2)
    for steps in (0, 1):
        go_on(questions, steps)
        for layer in range(built.engine.config.num_layers):
            for past, present in zip(past_kv(layer), present_kv(layer), strict=True):
                assert bound.places[past] == bound.places[present]
    for question in questions:
        question.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_allocates_little(built: Pair, count: int) -> None:
    questions = prefilled(built, count)
    smallest = min(keys.nbytes for keys in built.engine._slots.keys(0))
    assert smallest >= 2 * SMALL
    go_on(questions, WARM_UP)
    tracemalloc.start()
    try:
        go_on(questions, 1)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        go_on(questions, STEPS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < SMALL
    for question in questions:
        question.close()
