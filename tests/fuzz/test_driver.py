"""The driver finds what is neither a good result nor an EngineError, cuts it down and keeps it."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.errors import RequestError
from tools.fuzz import __main__ as command
from tools.fuzz.driver import attempt, fuzz, shrink
from tools.fuzz.kind import Kind
from tools.fuzz.shrink import smaller


def read(case: bytes) -> None:
    """Withstands everything but a 7 behind a 3."""
    if b"x" in case:
        raise RequestError("an x is not read; leave it out")
    if 3 in case and 7 in case[case.index(3) :]:
        raise LookupError("a 7")


def kind(run: Any) -> Kind:
    return cast(Kind, SimpleNamespace(NAME="bytes", make=lambda seed: bytes(range(seed)), run=run))


def test_only_what_is_no_engine_error_is_a_failure() -> None:
    outcomes = list(fuzz(kind(read), range(12)))
    assert [outcome is None for outcome in outcomes] == [True] * 8 + [False] * 4
    failure = outcomes[-1]
    assert failure is not None
    assert (failure.kind, failure.seed) == ("bytes", 11)
    assert failure.place.startswith("LookupError in ") and "test_driver.py:" in failure.place
    assert attempt(kind(read), b"x\3\7") is None


def test_a_failing_case_is_cut_down() -> None:
    failure = attempt(kind(read), bytes(range(100)) * 2)
    assert failure is not None
    assert shrink(kind(read), failure).case == b"\3\7"


@pytest.mark.parametrize("case", [{"a": ["xyz", 100], "b": {"c": 7}}, [1, [2, 3]], "text", 9, None, True])
def test_every_smaller_case_is_smaller(case: Any) -> None:
    def weight(value: Any) -> int:
        if isinstance(value, dict):
            return sum(1 + weight(item) for item in value.values())
        if isinstance(value, list):
            return sum(1 + weight(item) for item in value)
        return len(value) if isinstance(value, str) else abs(int(value or 0))

    assert all(weight(less) < weight(case) for less in smaller(case))


def test_a_hang_and_a_message_of_two_lines_are_failures() -> None:
    def two_lines(case: bytes) -> None:
        raise RequestError("one\ntwo")

    hang = attempt(kind(lambda case: time.sleep(60)), b"", seconds=0.05)
    assert hang is not None and hang.place.startswith("Hang in ")
    lines = attempt(kind(two_lines), b"")
    assert lines is not None and lines.place == "a message of 2 lines"


def test_the_command_keeps_the_smallest_case_and_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "kinds", lambda: {"bytes": kind(read)})
    monkeypatch.setattr(command.resource, "setrlimit", lambda *limits: None)
    arguments = ["--kind", "bytes", "--minutes", "5", "--seed", "0", "--out", str(tmp_path), "--stop-after", "1"]
    assert command.main(arguments) == 1
    assert "12 bytes from seed 0 on" not in capsys.readouterr().out
    (path,) = tmp_path.glob("*.bin")
    assert path.read_bytes() == b"\3\7"
    assert command.main(["--kind", "bytes", "--repeat", str(path)]) == 1
    assert "LookupError: a 7" in capsys.readouterr().out
    assert command.main(["--kind", "bytes", "--minutes", "0"]) == 0
