"""`make demo` without the make: both ways of answering are shown, each with its drawing."""

from pathlib import Path

import pytest
from PIL import Image

from tools import demo


def test_the_demo_shows_both_ways_of_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PAIR", demo.PAIR.absolute())
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0
    shown = capsys.readouterr().out
    assert "(early exit)" in shown
    assert "large model (the small one was not sure)" in shown
    assert shown.count("' (right)") >= len(demo.QUESTIONS) - 1
    for part in ("confidence ", "consistency ", "decision score ", "visual tokens ", "milliseconds "):
        assert shown.count(part) >= len(demo.QUESTIONS)
    for number in range(1, len(demo.QUESTIONS) + 1):
        path = Path("demo") / f"question-{number}.png"
        assert f"{path}\n" in shown
        with Image.open(path) as drawing:
            drawing.load()


def test_the_demo_says_where_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 2
    assert "run the demo in the root of the repository" in capsys.readouterr().err
