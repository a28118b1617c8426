"""The benchmark on tiny models: every question has its rows, what is missing is named, people's text stays.

tests/serving asks the question that needs a server.
"""

import json
import os
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tools.benchmark.__main__ import main
from tools.benchmark.interleave import Timings, compare_logits, spread
from tools.benchmark.peers import PEERS
from tools.benchmark.questions import QUESTIONS
from tools.benchmark.questions import peers as peers_question
from tools.benchmark.questions import plans as plans_question
from tools.benchmark.questions import towers as towers_question
from tools.benchmark.report import Row, Section, Unit, section_markdown, write_markdown
from tools.benchmark.tower_sizes import TINY_TOWERS
from tools.benchmark.towers import PEERS as TOWER_PEERS
from tools.benchmark.worker import Worker, WorkerError

ABSENT = replace(PEERS[0], name="absent engine", modules={"absent-package": "no_such_module"})
ABSENT_TOWER = replace(TOWER_PEERS[1], name="absent engine", module="no_such_module", package="absent-package")
ROWS = {
    "end_to_end": 55,
    "scores": 8,
    "peers": 4,
    "int8": 5,
    "towers": 8,
    "consistency": 2,
    "memory": 8,
    "tensor_parallel": 9,
    "plans": 8,
    "video": 9,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the report and the figures of a whole tiny run, in which one peer is not installed."""
    directory = tmp_path_factory.mktemp("benchmark")
    arguments = ["--size", "tiny", "--loads", "1", "--runs", "1", "--threads", "1", "--work", str(directory / "work")]
    arguments += ["--out", str(directory / "report.md"), "--json", str(directory / "figures.json")]
    arguments += ["--only", ",".join(ROWS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers_question, "PEERS", (PEERS[0], ABSENT))
        patch.setattr(towers_question, "PEERS", (TOWER_PEERS[0], ABSENT_TOWER))
        patch.setattr(plans_question, "CASES", plans_question.CASES[:2])
        assert main(arguments) == 0
    return directory


def table_rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith(("| what", "|---"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_question_has_a_figure_in_every_row(run: Path) -> None:
    sections = json.loads((run / "figures.json").read_text())["sections"]
    assert {name: len(section["rows"]) for name, section in sections.items()} == ROWS
    figures = [row for section in sections.values() for row in section["rows"] if "absent" not in row["what"]]
    assert all(row["spread"]["median"] > 0 and row["spread"]["count"] >= 1 for row in figures)
    rows = table_rows((run / "report.md").read_text())
    assert len(rows) == sum(ROWS.values())
    assert all(row[2][0].isdigit() for row in rows if "absent" not in row[0])


def test_a_missing_peer_is_named(run: Path) -> None:
    rows = [row for row in table_rows((run / "report.md").read_text()) if "absent engine" in row[0]]
    assert len(rows) == 2 + len(TINY_TOWERS)
    assert all(row[2:5] == ["not measured", "", "not installed: no package absent-package"] for row in rows)


def test_nothing_is_left_in_the_work_directory(run: Path) -> None:
    assert not list((run / "work").iterdir())


def test_what_people_wrote_stays(run: Path) -> None:
    report = run / "report.md"
    text = report.read_text()
    assert all(text.count(f"<!-- benchmark {name} {edge} -->") == 1 for name in ROWS for edge in ("begin", "end"))
    generated = text[text.index("<!-- benchmark scores begin -->") : text.index("<!-- benchmark scores end -->")]
    by_hand = text.replace(generated, "<!-- benchmark scores begin -->\nold\n") + "\nOur finding, \\1 by hand.\n"
    report.write_text(by_hand)
    block = generated.removeprefix("<!-- benchmark scores begin -->\n").removesuffix("\n")
    write_markdown(report, {"scores": block}, ("machine", *QUESTIONS))
    assert report.read_text() == text + "\nOur finding, \\1 by hand.\n"


def test_a_later_question_takes_its_place_among_the_others(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    for name in ("c", "a", "b"):
        write_markdown(report, {name: f"## {name}\n\nblock {name} \\1"}, ("a", "b", "c"))
    text = report.read_text()
    places = [text.index(f"block {name} \\1") for name in "abc"]
    assert places == sorted(places) and places[-1] < text.index("## Predictions and findings")


@pytest.mark.parametrize(
    ("unit", "median", "passed"),
    [(Unit.RATIO, 0.5, True), (Unit.RATIO, 0.51, False), (Unit.COSINE, 0.5, True), (Unit.COSINE, 0.49, False)],
)
def test_a_target_is_a_bound_of_the_median(unit: Unit, median: float, passed: bool) -> None:
    row = Row("thing", spread([0.0, median, 9.0]), 0.5, unit)
    assert row.passed() is passed
    text = section_markdown(Section("Title", "Setting.", [row]), "command", "stamp")
    assert ("✓" in text, "✗" in text) == (passed, not passed)


def test_a_ratio_is_taken_round_by_round() -> None:
    timings = Timings()
    timings.seconds["w", "prefill", "a"] = [1.0, 20.0, 3.0]
    timings.seconds["w", "prefill", "b"] = [2.0, 10.0, 3.0]
    timings.seconds["w", "prefill", "c"] = [4.0, 30.0, 3.0]
    assert timings.ratio("w", "prefill", "a", "b").median == 1.0
    assert timings.ratio("w", "prefill", "a", "b", "c") == spread([1 / 3, 1.0, 1.0])


def test_other_logits_do_not_agree() -> None:
    key = ("w", "prefill")
    expected = np.array([1.0, 2.0, 3.0], np.float32)
    assert compare_logits({key: expected}, {key: expected}).same_top
    other = compare_logits({key: expected[::-1]}, {key: expected})
    assert not other.same_top and other.max_difference == 2.0 and other.cosine == pytest.approx(10 / 14)


LOAD_OS = partial(import_module, "os")
"""A subject that another process finds at once: what a worker calls are the functions of this module."""


def test_a_worker_is_another_process() -> None:
    with Worker(LOAD_OS) as worker:
        assert worker.call("getpid").result not in (0, os.getpid())
        reply = worker.call("getenv", "no such variable", default="nothing")
    assert reply.result == "nothing" and reply.seconds > 0


@pytest.mark.parametrize(
    ("method", "argument", "reason"),
    [("strerror", "x", "TypeError: .*integer"), ("_exit", 7, "ended with exit status 7")],
)
def test_a_worker_says_why_it_failed(method: str, argument: object, reason: str) -> None:
    with Worker(LOAD_OS) as worker, pytest.raises(WorkerError, match=reason):
        worker.call(method, argument)


def test_a_worker_that_cannot_load_says_why() -> None:
    with pytest.raises(WorkerError, match=r"ModuleNotFoundError: .*no_such_module"):
        Worker(partial(import_module, "no_such_module"))


def test_an_unknown_question_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "scores,speed"])
    assert stopped.value.code == 2
    said = "'speed' is none of end_to_end, scores, peers, int8, towers, consistency, memory, tensor_parallel, plans"
    assert said in capsys.readouterr().err
