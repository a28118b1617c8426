"""The requests that are fuzzed reach both models, and faults come through; `test_kinds.py` runs them."""

import json
from typing import Any

import pytest

from engine.config import ExitConfig, SamplingConfig
from engine.errors import EngineError, RequestError
from tools.fuzz import requests
from tools.fuzz.driver import attempt
from tools.fuzz.stand_in import StandInLanguage, stand_in_pipeline
from tools.fuzz.values import photo, revive


def outcomes(number: int) -> list[EngineError | None]:
    found: list[EngineError | None] = []
    for seed in range(number):
        try:
            requests.run(requests.make(seed))
            found.append(None)
        except EngineError as error:
            found.append(error)
    return found


def test_many_are_answered_and_many_refused() -> None:
    found = outcomes(200)
    assert 40 < found.count(None) < 150
    assert len({str(error) for error in found}) > 40


def test_a_seed_is_a_case_that_can_be_kept() -> None:
    cases = [requests.make(seed) for seed in range(300)]
    assert {case.get("call") for case in cases} == {None, *requests.CALLS}
    assert [json.dumps(case) for case in cases] == [json.dumps(requests.make(seed)) for seed in range(300)]
    assert repr([json.loads(json.dumps(case)) for case in cases]) == repr(cases)


def test_the_stand_in_prunes_and_exits() -> None:
    pipeline, picture = stand_in_pipeline(), photo()
    answer = pipeline.answer(picture, "What?", sampling=SamplingConfig(max_new_tokens=4))
    assert answer.visual_tokens == 16 * 3 and answer.num_kept() == int(0.2 * 48)
    sure = pipeline.answer(picture, "What?", exit=ExitConfig(exit_threshold=0.0))
    assert sure.early_exit


@pytest.mark.parametrize("name", ["extend", "step", "visual_scores", "open"])
def test_a_fault_within_the_loop_is_found_where_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise LookupError("a fault")

    case = {"call": "answer", "arguments": {"images": [{"as": "photo"}], "text": "What?"}}
    assert attempt(requests, case) is None
    monkeypatch.setattr(StandInLanguage, name, fail)
    failure = attempt(requests, case)
    assert failure is not None and failure.place.startswith(f"LookupError in {__file__}:")


@pytest.mark.parametrize(
    "case", [{}, {"call": "x"}, {"call": "answer_each", "arguments": 5}, {"tensors": {"stream": {}}}]
)
def test_what_shrinking_leaves_is_a_case(case: Any) -> None:
    failure = attempt(requests, case)
    assert failure is None, failure.report


def test_objects_are_what_they_say() -> None:
    assert revive({"as": "power", "of": 5000}) == -(10**5000)
    assert revive([{"as": "tuple", "of": [{"as": "int8", "of": 3}]}]) == [(3,)]
    assert revive({"as": "picture", "of": "x"}).size == (1, 1)
    with pytest.raises(RequestError, match="images of a question cannot be a int"):
        revive({"as": "question", "of": {"images": 5}})
