"""`sgl evaluate` and `sgl calibrate` on a random pair: what is written, continued, refused, calibrated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.batch.answers import journal_of
from engine.cli.__main__ import main
from engine.cli.run_costs import CostBy
from engine.config import Draft, ExitCriterion, GuidanceConfig
from engine.engine_directory import read_manifest
from engine.evaluation import run as runs
from engine.evaluation.benchmarks import BENCHMARKS
from engine.evaluation.record import read_run
from engine.evaluation.summary import steps_saved
from tools.miniature.benchmark import MINIATURE


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature's beside the published ones."""
    monkeypatch.setitem(BENCHMARKS, MINIATURE.name, MINIATURE)


@pytest.fixture
def engine(engine_directory: Path, tmp_path: Path) -> Path:
    """A copy whose manifest a test may change."""
    shutil.copytree(engine_directory, tmp_path / "engine")
    return tmp_path / "engine"


@pytest.fixture
def measure(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*options: object) -> dict[str, Any]:
        arguments = ["--engine", engine, "--benchmark", "miniature-vqa", "--out", tmp_path / "run.jsonl", "--json"]
        assert main(["evaluate", *(str(part) for part in (*arguments, *options))]) == 0
        summary: dict[str, Any] = json.loads(capsys.readouterr().out)
        return summary

    return run


def test_a_run_continues_where_it_stopped(
    measure: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: Path,
) -> None:
    options = ("--retention", 0.35, "--no-early-exit", "--guidance", "random")
    whole = measure("--limit", 10, *options)
    assert (whole["questions"], whole["early_exit"]) == (10, 0)
    assert whole["average_retention"] == pytest.approx(0.35, abs=1e-6)
    path = tmp_path / "run.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 11
    asked: list[str] = []
    make_record = runs.make_record
    monkeypatch.setattr(
        runs, "make_record", lambda *arguments: asked.append(arguments[1].id) or make_record(*arguments)
    )
    few, again = measure("--limit", 8, *options), measure("--limit", 10, *options)
    assert (few["questions"], asked, again) == (8, [], whole)
    # Killed in the middle of the ninth answer: the file is made again from what the journal holds.
    path.unlink()
    journal_of(path).unlink()
    measure("--limit", 8, *options)
    with path.open("ab") as file:
        file.write(lines[9][:40])
    asked.clear()
    again = measure("--limit", 10, *options)
    _, records = read_run(path)
    assert sorted(asked) == sorted(record.id for record in records[8:]), "in whatever order they were answered"
    assert again["score"] == whole["score"]
    predictions = [json.loads(line)["prediction"] for line in lines[1:]]
    assert [record.prediction for record in records] == predictions
    assert len({record.num_kept for record in records}) == 1

    refused = ["--engine", str(engine), "--benchmark", "miniature-vqa", "--out", str(path)]
    refused += ["--guidance", "random", "--seed", "5"]
    assert main(["evaluate", *refused]) == 2
    assert "holds answers with another guidance and exit and seed (" in capsys.readouterr().err


def test_a_labelled_run_calibrates_the_engine(
    measure: Callable[..., dict[str, Any]], engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = measure("--limit", 8, "--label", "--retention-ratio", 0.1)
    assert labelled["early_exit"] == 0
    assert labelled["small_score"].keys() == labelled["score"].keys()
    path, figure = tmp_path / "run.jsonl", tmp_path / "curves.png"
    arguments = ["--engine", engine, "--run", path, "--figure", figure, "--exit-criterion", "confidence", "--json"]
    assert main(["calibrate", *(str(part) for part in (*arguments, "--exit-ratio", 0.5))]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["area"].keys() == report["auc"].keys() == set(ExitCriterion)
    assert figure.stat().st_size > 10_000
    manifest = read_manifest(engine)
    assert (manifest.exit.criterion, manifest.exit.exit_threshold) == ("confidence", report["exit_threshold"])
    assert manifest.guidance == GuidanceConfig(retention_ratio=0.1)
    path.unlink()
    journal_of(path).unlink()
    assert measure("--limit", 8)["early_exit"] == report["exit_ratio"] >= 0.5

    assert main(["calibrate", *(str(part) for part in (*arguments, "--exit-ratio", 0.5))]) == 2
    assert "run sgl evaluate with --label" in capsys.readouterr().err


def test_several_runs_choose_guidance_too(
    measure: Callable[..., dict[str, Any]], engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By arithmetic: the same whenever it is asked."""
    settings = {
        "whole": ("--no-guidance",),
        "paper": ("--retention-ratio", 0.2),
        "flat": ("--schedule", "flat", "--retention-ratio", 0.05),
    }
    for name, options in settings.items():
        measure("--limit", 6, "--label", "--out", tmp_path / f"{name}.jsonl", *options)
    paths = [str(tmp_path / f"{name}.jsonl") for name in settings]
    common = ["calibrate", "--engine", str(engine), "--run", *paths, "--figure", str(tmp_path / "front.png"), "--json"]
    reports = {}
    for by in CostBy:
        assert main([*common, "--within", "100", "--cost-by", by]) == 0
        reports[by] = json.loads(capsys.readouterr().out)
        assert reports[by]["cost"] > 0 and reports[by]["exit_ratio"] == 1
        costs = [point["cost"] for point in reports[by]["front"]]
        assert costs == sorted(costs) and costs[0] == reports[by]["cost"]
    for by in (CostBy.OPERATIONS, CostBy.ROOFLINE):
        assert reports[by]["cost"] < 1, "the small model alone, in what the large one takes"
    assert (tmp_path / "front.png").stat().st_size > 10_000

    assert main([*common, "--exit-ratio", "0", "--cost-by", "operations", "--exit-criterion", "confidence"]) == 0
    report = json.loads(capsys.readouterr().out)
    guidance = read_manifest(engine).guidance
    assert report["run"] in paths and report["exit_ratio"] == 0
    assert guidance.enabled is report["guidance"]["enabled"]
    assert guidance.schedule == report["guidance"]["schedule"]

    assert main(["calibrate", "--engine", str(engine), "--run", *paths[1:], "--within", "1"]) == 2
    assert "add one of sgl evaluate with --label and --no-guidance" in capsys.readouterr().err
    lines = (tmp_path / "flat.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "flat.jsonl").write_text("".join(lines[:-1]))
    assert main([*common, "--score", "0"]) == 2
    assert "is not of the questions of" in capsys.readouterr().err


def test_mistakes_end_in_a_sentence(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engine", str(engine), "--benchmark", "textvqa", "--data", str(tmp_path)]
    assert main(["evaluate", *arguments]) == 2
    assert "TextVQA_0.5.1_val.json is missing" in capsys.readouterr().err
    assert main(["evaluate", "--engine", str(engine), "--benchmark", "miniature-vqa", "--device", "cuda"]) == 2
    assert "runs on device cpu only" in capsys.readouterr().err
    assert main(["calibrate", "--engine", str(engine), "--run", str(tmp_path / "no"), "--score", "0.5"]) == 2
    assert "make it with sgl evaluate" in capsys.readouterr().err


def test_the_device_is_that_of_the_engine(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.jsonl"
    assert (
        main(
            ["evaluate", "--engine", str(engine), "--benchmark", "miniature-vqa", "--out", str(out), "--device", "cuda"]
        )
        == 2
    )
    assert (
        "precision fp32, which target onnxruntime runs on device cpu only; rebuild with --precision fp16"
        in capsys.readouterr().err
    )
    assert not out.exists()


def test_drafts_and_tiles_are_counted(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """And a run with another draft is another run, of the same answers."""
    options = ("--limit", 5, "--no-early-exit", "--schedule", "flat", "--retention", 0.02)
    drafted = measure(*options)
    _, records = read_run(tmp_path / "run.jsonl")
    assert drafted["steps_saved"] == steps_saved(records)
    assert drafted["tiles_skipped"] > 0
    assert sum(record.drafted_tokens for record in records) > 0
    plain = measure(*options, "--draft", "none", "--out", tmp_path / "plain.jsonl")
    settings, others = read_run(tmp_path / "plain.jsonl")
    assert settings.draft is Draft.NONE
    assert [record.prediction for record in others] == [record.prediction for record in records]
    assert (plain["steps_saved"], sum(record.drafted_tokens for record in others)) == (0, 0)
    assert plain["tiles_skipped"] == drafted["tiles_skipped"]


def test_speculation_alone_is_a_baseline(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Without guidance and exits, and without the small model's own answer as a draft."""
    options = ("--limit", 4, "--no-early-exit", "--no-guidance")
    speculated = measure(*options, "--draft", "none", "--speculate", 3)
    settings, records = read_run(tmp_path / "run.jsonl")
    assert settings.speculate == 3
    assert all(record.drafted_tokens == record.speculated_tokens for record in records)
    drafted = sum(record.speculated_tokens for record in records)
    accepted = sum(record.speculated_accepted_tokens for record in records)
    assert drafted > 0
    assert speculated["acceptance"] == speculated["speculative_acceptance"] == accepted / drafted
    plain = measure(*options, "--out", tmp_path / "plain.jsonl")
    _, others = read_run(tmp_path / "plain.jsonl")
    assert [record.prediction for record in others] == [record.prediction for record in records]
    assert plain["speculative_acceptance"] is None
