"""The question `serving` of the benchmark, on tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.benchmark.__main__ import main
from tools.benchmark.questions import serving
from tools.triton.server_environment import UnsuitableMachine, install
from tools.triton.server_process import ServerError

pytestmark = pytest.mark.xdist_group("server")
CASES = len(serving.EXIT_RATIOS) * len(serving.CONCURRENCIES)


def run(directory: Path) -> dict[str, Any]:
    """The section as `--json` writes it."""
    arguments = ["--only", "serving", "--size", "tiny", "--runs", "1", "--threads", "1", "--work", str(directory)]
    arguments += ["--out", str(directory / "report.md"), "--json", str(directory / "figures.json")]
    assert main(arguments) == 0
    figures: dict[str, Any] = json.loads((directory / "figures.json").read_text())
    return dict(figures["sections"]["serving"])


def test_every_case_is_measured(tmp_path: Path) -> None:
    try:
        install()
    except UnsuitableMachine as error:
        pytest.skip(str(error))
    section = run(tmp_path)
    assert len(section["rows"]) == CASES
    for row in section["rows"]:
        assert row["spread"]["median"] > 0 and row["spread"]["count"] == 1
        assert "questions/s, p50" in row["note"]
    assert sum("Large alone" in remark for remark in section["remarks"]) == len(serving.CONCURRENCIES)


def test_without_a_server_the_rows_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ServerError("no server here")

    monkeypatch.setattr(serving, "serve", refuse)
    section = run(tmp_path)
    assert [(row["spread"], row["note"]) for row in section["rows"]] == [(None, "no server here")] * CASES
