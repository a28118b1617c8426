"""The file of a run: what was written comes back, under the names that a file has."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from engine.config import Draft, ExitConfig, GuidanceConfig
from engine.errors import RequestError
from engine.evaluation.record import FILE, Record, RunSettings, read_run
from engine.runtime.answer import AnsweredBy

SETTINGS = RunSettings(
    "own", {"small/vision": "key"}, GuidanceConfig(), ExitConfig(), max_new_tokens=8, seed=0, draft=Draft.SMALL
)
RECORD = Record(
    id="1",
    kind="k",
    group="g",
    question="Which?",
    answers=("red",),
    prediction="red",
    grade=1.0,
    answered_by=AnsweredBy.LARGE,
    small_text="blue",
    small_grade=0.0,
    decision=None,
    visual_tokens=16,
    num_kept=4,
    tiles=4,
    tiles_skipped=1,
    average_retention=0.5,
    generated_tokens=1,
    drafted_tokens=2,
    accepted_tokens=0,
    seconds={"large.prefill": 0.25},
)


def written() -> list[str]:
    return [json.dumps(FILE.unstructure(value)) for value in (SETTINGS, RECORD)]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("\n".join(written()) + "\n")
    assert read_run(tmp_path / "run.jsonl") == (SETTINGS, [RECORD])


def test_grades_are_scores_in_a_file() -> None:
    content = json.loads(written()[1])
    names = {"grade": "score", "small_grade": "small_score"}
    assert list(content) == [names.get(field.name, field.name) for field in fields(Record)]
    assert (content["score"], content["small_score"]) == (1.0, 0.0)


def test_another_name_is_refused(tmp_path: Path) -> None:
    lines = [line.replace('"score"', '"grade"') for line in written()]
    (tmp_path / "run.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RequestError, match="line 2 is not as this version writes it"):
        read_run(tmp_path / "run.jsonl")
