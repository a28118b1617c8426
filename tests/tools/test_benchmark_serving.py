"""The questions `serving` and `doors` of the benchmark, on tiny models."""

import json
from pathlib import Path

from tools.benchmark.__main__ import main
from tools.benchmark.questions import doors, serving


def test_every_case_is_measured(tmp_path: Path) -> None:
    arguments = ["--only", "serving", "--size", "tiny", "--runs", "1", "--threads", "1", "--work", str(tmp_path)]
    arguments += ["--out", str(tmp_path / "report.md"), "--json", str(tmp_path / "figures.json")]
    assert main(arguments) == 0
    section = json.loads((tmp_path / "figures.json").read_text())["sections"]["serving"]
    assert len(section["rows"]) == len(serving.AT_ONCE) + len(serving.EXIT_RATIOS) + len(serving.CAPACITIES)
    for row in section["rows"]:
        assert row["spread"]["median"] > 0 and row["spread"]["count"] == 1


def test_every_door_is_measured(tmp_path: Path) -> None:
    arguments = ["--only", "doors", "--size", "tiny", "--runs", "1", "--threads", "1", "--work", str(tmp_path)]
    arguments += ["--out", str(tmp_path / "report.md"), "--json", str(tmp_path / "figures.json")]
    assert main(arguments) == 0
    section = json.loads((tmp_path / "figures.json").read_text())["sections"]["doors"]
    assert len(section["rows"]) == 2 * len(doors.AT_ONCE) * (len(doors.DOORS) - 1)
    for row in section["rows"]:
        assert "Triton" in row["what"] or row["spread"]["median"] > 0
