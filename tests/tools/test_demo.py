"""`make demo` without the make: both ways of answering are shown, each with its drawing."""

from pathlib import Path

import pytest
from PIL import Image

from tools import demo


def test_the_demo_shows_both_ways_of_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0
    shown = capsys.readouterr().out
    assert "The weights of this pair are RANDOM" in shown
    assert "(early exit)" in shown
    assert "large model (the small one was not sure)" in shown
    assert "(2 pictures)" in shown
    for part in ("confidence ", "consistency ", "decision score ", "visual tokens ", "milliseconds "):
        assert shown.count(part) >= len(demo.QUESTIONS)
    for number in range(1, len(demo.QUESTIONS) + 1):
        path = Path("demo") / f"question-{number}.png"
        assert f"picture         {path}\n" in shown
        with Image.open(path) as drawing:
            drawing.load()


def test_trained_checkpoints_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("small", "large"):
        (demo.MINIATURE / name).mkdir(parents=True)
        (demo.MINIATURE / name / "config.json").touch()
    assert demo.find_pair(tmp_path / "demo") == demo.MINIATURE
    assert not (tmp_path / "demo").exists()
