"""The page of settings beyond the paper, on a random pair and a few questions; a second run asks nothing."""

from pathlib import Path

import numpy as np
import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig, GuidanceConfig
from engine.evaluation import run
from engine.runtime.guidance import count_kept
from tools.miniature import beyond

pytest.importorskip("tools.miniature.questions")


def test_the_page_is_complete_and_repeats(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, out = tmp_path / "engine", tmp_path / "beyond.md"
    build_pair(BuildConfig(pair / "small", pair / "large", engine, max_tokens=512, large_scores=True))
    monkeypatch.setattr(beyond, "CALIBRATION", 3)
    arguments = ["--engine", str(engine), "--out", str(out), "--runs", str(tmp_path / "runs"), "--limit", "2"]
    arguments += ["--retention", "0.35", "0.09"]
    assert beyond.main(arguments) == 0
    text = out.read_text(encoding="utf-8")
    for retention in (35, 9):
        assert f"## At {retention}%, the large model answers" in text
    for name, count in (("flat, share (0.", 1), ("flat, both, share (0.", 1), ("SGP, tiles |", 2), ("oracle |", 2)):
        assert sum(line.startswith(f"| {name}") for line in text.splitlines()) == count, name
    assert "| 0.35 SGP |" in text and "| 0.09 flat both share |" in text

    monkeypatch.setattr(run, "make_record", lambda *arguments: pytest.fail("asked again"))
    assert beyond.main(arguments) == 0
    assert out.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("retention", [0.03, 0.09, 0.15])
def test_a_share_keeps_what_was_wanted_on_average(retention: float) -> None:
    maps = list(np.random.default_rng(0).lognormal(sigma=2, size=(200, 144)))
    guidance = GuidanceConfig(retention_least=0.015, retention_most=0.17)
    share = beyond.share_for(maps, guidance, retention)
    limited = GuidanceConfig(retention_share=share, retention_least=0.015, retention_most=0.17)
    kept = np.mean([count_kept(one, limited)[0] / 144 for one in maps])
    assert kept == pytest.approx(retention, abs=0.002)
