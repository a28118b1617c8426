"""The report on a random pair and a few questions: every table and figure is there, and a second run asks nothing."""

from pathlib import Path

import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig, GuidanceSource, ScoreRows
from engine.evaluation import run
from tools.miniature import report

pytest.importorskip("tools.miniature.questions")


def test_the_report_is_complete_and_repeats(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, out = tmp_path / "engine", tmp_path / "miniature.md"
    build_pair(BuildConfig(pair / "small", pair / "large", engine, max_tokens=512, large_scores=True))
    arguments = ["--engine", str(engine), "--out", str(out), "--runs", str(tmp_path / "runs"), "--limit", "2"]
    assert report.main(arguments) == 0
    text = out.read_text(encoding="utf-8")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    # For one picture, those behind the last are those of the prompt.
    for name in (*GuidanceSource, *(rows for rows in ScoreRows if rows is not ScoreRows.BEHIND_LAST)):
        assert any(line.startswith(f"| {name} |") for line in tables)
    fastv = next(line for line in tables if line.startswith("| fastv |"))
    assert fastv.endswith("| – |")
    assert fastv.count("–") == 1
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["miniature_exits.png", "miniature_sources.png", "miniature_tokens.png"]
    assert all(f"({name})" in text for name in pictures)

    several = out.with_name("several.md")
    more = ["--engine", str(engine), str(engine), *arguments[4:], "--out", str(several), "--spread-limit", "1"]
    assert report.main(more) == 0
    assert ", 2 pairs trained with different seeds" in several.read_text(encoding="utf-8")
    assert "the further ones on 1 questions" in several.read_text(encoding="utf-8")

    monkeypatch.setattr(run, "make_record", lambda *arguments: pytest.fail("asked again"))
    assert report.main(arguments) == 0
    assert out.read_text(encoding="utf-8") == text
