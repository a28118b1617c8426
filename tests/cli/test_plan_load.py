"""`sgl plan --load`: what it prints, what it searches, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.evaluation.benchmarks import BENCHMARKS
from engine.evaluation.example import Example
from engine.evaluation.record import FILE, RunSettings, make_record
from engine.runtime.pipeline import SglPipeline
from tests.cli.conftest import Run
from tests.pictures import noise

Sgl = Callable[..., Run]


@pytest.fixture
def models(pair: Path) -> tuple[Any, ...]:
    return "--small", pair / "small", "--large", pair / "large", "--tiles", 2, "--max-new-tokens", 4


def test_one_way_has_its_percentiles(models: tuple[Any, ...], sgl: Sgl) -> None:
    run = sgl("plan", *models, "--load", 100, "--exit-ratio", 0.4)
    assert run.status == 0
    for part in ("100 questions/s", "busy for at most 80%", "PREDICTED", "first text", "p50", "p99", "simulated"):
        assert part in " ".join(run.out.split()), part


def test_json_says_how_many_and_how_fast(models: tuple[Any, ...], sgl: Sgl) -> None:
    found = json.loads(sgl("plan", *models, "--load", 100, "--replicas", 2, "--max-running", 3, "--json").out)
    (way,) = found["front"]
    assert (found["questions_per_second"], found["quality"], found["goals"]) == (100, "retention", [])
    assert (way["replicas"], way["units"], way["unit"], way["max_running"]) == (2, 2, "GPU", 3)
    assert way["first_text"]["p50"]["seconds"] <= way["first_text"]["p95"]["seconds"] <= way["answer"]["p99"]["seconds"]
    assert 0 < way["utilisation"] < 1
    assert way["exit_threshold"] is None


def test_a_goal_is_searched_for(models: tuple[Any, ...], sgl: Sgl, tmp_path: Path) -> None:
    figure = tmp_path / "front.png"
    options = "--load", 2, "--slo", "p95 ttft 100ms", "--max-running", 4, "--figure", figure, "--json"
    found = json.loads(sgl("plan", *models, *options).out)
    assert found["goals"] == ["p95 ttft 100ms"]
    assert found["front"]
    for way in found["front"]:
        assert way["first_text"]["p95"]["seconds"] <= 0.1
    costs, qualities = ([way[name] for way in found["front"]] for name in ("units", "quality"))
    assert costs == sorted(set(costs))
    assert qualities == sorted(set(qualities))
    assert figure.read_bytes()[1:4] == b"PNG"


def test_a_goal_that_nothing_meets(models: tuple[Any, ...], sgl: Sgl) -> None:
    found = json.loads(sgl("plan", *models, "--load", 2, "--slo", "p50 answer 0.001ms", "--no-guidance", "--json").out)
    assert [way["replicas"] for way in found["front"]] == [None]


def test_an_engine_is_measured(engine_directory: Path, sgl: Sgl) -> None:
    options = "--load", 0.5, "--max-new-tokens", 3, "--max-running", 2, "--threads", 1, "--json"
    found = json.loads(sgl("plan", "--engine", engine_directory, *options).out)
    times = found["times"]
    assert times["from"].startswith("measured")
    for role in ("small", "large"):
        for kind in ("step", "extend", "encode"):
            assert sum(sum(line.values()) for line in times[role][kind]) > 0, (role, kind)
    assert times["turn"] + times["resume"] > 0
    assert found["front"][0]["unit"] == "machine"


def test_labelled_runs_say_what_quality_costs(
    models: tuple[Any, ...], engine_directory: Path, sgl: Sgl, tmp_path: Path
) -> None:
    path, never = tmp_path / "run.jsonl", ExitConfig(exit_threshold=1.01)
    guidance = GuidanceConfig(retention_ratio=0.5, prune_layer=1)
    settings = RunSettings("own", {}, guidance, never, 3, 0, SamplingConfig.draft)
    lines: list[Any] = [settings]
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        for number in range(4):
            sampling = SamplingConfig(max_new_tokens=3)
            image = noise(40 + number, 40)
            answer = pipeline.answer([image], "What?", guidance=guidance, exit=never, sampling=sampling)
            right = answer.text if number % 2 else "another"
            lines.append(make_record(BENCHMARKS["own"], Example(str(number), None, "What?", (right,)), answer))
    path.write_text("".join(json.dumps(FILE.unstructure(line)) + "\n" for line in lines), "utf-8")
    found = json.loads(sgl("plan", *models, "--load", 2, "--runs", path, "--slo", "p95 answer 9s", "--json").out)
    assert found["quality"] == "score"
    assert found["front"]
    for way in found["front"]:
        assert way["retention_ratio"] == 0.5
        assert way["exit_threshold"] is not None
        assert 0 <= way["quality"] <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "two models are planned; give --small and --large"),
        (("--small", "1B"), "two models are planned; give --small and --large"),
        (("--engine", "e"), "--engine is measured for questions that come at random; give --load"),
        (("--engine", "e", "--small", "1B", "--load", "1"), "--engine has its models; leave out --small and --large"),
        (("--load", "0"), "'0' is not a number above 0"),
        (("--load", "1", "--slo", "soon"), "'soon' is no goal such as 'p95 ttft 300ms'"),
        (("--load", "1", "--mix", "7"), "'7' is not tiles and tokens of an answer"),
        (("--load", "1", "--exit-ratio", "2"), "'2' is not a number between 0 and 1"),
        (
            ("--small", "1B", "--large", "1B", "--load", "1", "--answers", "a", "--mix", "1:2"),
            "--answers says what is asked, and so does --mix; leave one of them out",
        ),
        (
            ("--small", "1B", "--large", "1B", "--load", "1", "--gpu-memory", "3GB"),
            "for keys and values, and one question takes",
        ),
    ],
)
def test_refusals_are_one_sentence(options: tuple[str, ...], sentence: str, sgl: Sgl) -> None:
    run = sgl("plan", *options)
    assert (run.status, run.out) == (2, "")
    assert sentence in run.err
    assert run.err.count("\n") == 1
