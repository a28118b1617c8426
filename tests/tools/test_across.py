"""The page of guidance across families, on a random pair and a few questions; a second run asks nothing."""

from pathlib import Path

import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig
from engine.evaluation import run
from tools.miniature import across

pytest.importorskip("tools.miniature.questions")


def test_the_page_is_complete_and_repeats(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, out = tmp_path / "engine", tmp_path / "across.md"
    build_pair(BuildConfig(pair / "small", pair / "large", engine, max_tokens=512, large_scores=True))
    arguments = ["--engine", str(engine), "--out", str(out), "--runs", str(tmp_path / "runs"), "--limit", "2"]
    assert across.main(arguments) == 0
    text = out.read_text(encoding="utf-8")
    assert all(f"\n| {source} |" in text for source in across.SOURCES)
    assert "| guidance | 35%: K = " in text and " | 9%: K = " in text

    monkeypatch.setattr(run, "make_record", lambda *arguments: pytest.fail("asked again"))
    assert across.main(arguments) == 0
    assert out.read_text(encoding="utf-8") == text
