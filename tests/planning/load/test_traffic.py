"""Questions that come at random, and those of files of answers."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import RequestError
from engine.planning.load.course import Course, Reading, Size
from engine.planning.load.traffic import Kind, Traffic, read_answers

SHORT, LONG = Size((1,), 10, 2, 2), Size((7,), 10, 2, 50)
COURSES = {size: Course(None, Reading((), (), 0.0, 0), (), 0, size.large_tokens) for size in (SHORT, LONG)}
ANSWER = {
    "early_exit": False,
    "prompt_tokens": 300,
    "generated_tokens": 9,
    "drafted_tokens": 4,
    "accepted_tokens": 3,
    "visual_tokens": 256,
    "tiles": 1,
}


def test_arrivals_are_poisson_of_the_wanted_kinds() -> None:
    traffic = Traffic((Kind(SHORT, exits=0.4, weight=3.0), Kind(LONG)), rate=20.0, known=0.25)
    arrivals = list(islice(traffic.arrivals(COURSES), 20_000))
    gaps = np.diff([arrival.at for arrival in arrivals])
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    short = [arrival for arrival in arrivals if arrival.course is COURSES[SHORT]]
    assert len(short) / len(arrivals) == pytest.approx(0.75, abs=0.01)
    assert np.mean([arrival.exits for arrival in short]) == pytest.approx(0.4, abs=0.015)
    assert np.mean([arrival.known for arrival in arrivals]) == pytest.approx(0.25, abs=0.015)
    assert traffic.exit_ratio() == pytest.approx(0.3)
    again = list(islice(traffic.arrivals(COURSES), 20_000))
    assert again == arrivals
    assert traffic.shared(4).rate == 5.0


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_every_form_of_an_answer_is_read(tmp_path: Path) -> None:
    completion = {
        "usage": {"prompt_tokens": 300, "completion_tokens": 9, "total_tokens": 309},
        "sgl": {name: ANSWER[name] for name in ANSWER if name not in ("prompt_tokens", "generated_tokens")},
    }
    kinds = read_answers(
        written(
            tmp_path / "answers.jsonl",
            {"id": 1} | ANSWER,
            {"custom_id": "a", "response": {"status_code": 200, "body": completion}, "error": None},
            completion,
            {"id": 2} | ANSWER | {"early_exit": True, "drafted_tokens": 0, "accepted_tokens": 0},
            {"id": 3, "error": {"code": "failed", "message": "line 3: no", "line": 3}},
            {"custom_id": "b", "response": {"status_code": 400, "body": {}}, "error": None},
            "",
        )
    )
    assert kinds[:3] == (Kind(Size((1,), 44, 4, 9, 3)),) * 3
    assert kinds[3:] == (Kind(Size((1,), 44, 9, 9), exits=1.0),)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1 is no JSON"),
        ({"id": 1}, "line 1 is no answer of sgl batch or sgl serve ('prompt_tokens')"),
        ([], "line 1 is no answer"),
        (3, "line 1 is no answer"),
        (ANSWER | {"visual_tokens": 301}, "its numbers do not fit together"),
        (ANSWER | {"tiles": -1}, "one of its numbers is none"),
        (ANSWER | {"tiles": True}, "one of its numbers is none"),
        (ANSWER | {"generated_tokens": 0}, "its numbers do not fit together"),
        ({"response": {}}, "line 1 is no answer"),
        ({"error": {}}, "holds no answer"),
    ],
)
def test_what_is_no_answer_is_refused_in_a_sentence(line: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        read_answers(written(tmp_path / "answers.jsonl", line))
    assert sentence in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl")
