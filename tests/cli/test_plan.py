"""`sgl plan`: what it prints, and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.planning.fit import Fit, fit
from engine.planning.pair_plan import PairPlan, plan_pair
from engine.planning.plan_config import PlanConfig
from engine.planning.workload import Workload
from tests.cli.conftest import Run

Sgl = Callable[..., Run]
PUBLISHED = ("--small", "InternVL2-1B", "--large", "internvl2-2b")


def test_text_shows_memory_fit_communication_and_prediction(sgl: Sgl) -> None:
    run = sgl("plan", *PUBLISHED, "--tp", 2)
    assert (run.status, run.err) == (0, "")
    for part in (
        "InternVL2-1B guides InternVL2-2B · tensorrt bf16 · 2 ranks",
        "3,328 visual tokens (13 tiles)",
        "KV cache, layers below 4",
        "KV cache, layers from 4 on",
        "together, as the models take turns",
        "such questions at once, or one of",
        "engines of exactly this size: --max-tokens 3520 --max-batch 1 --prune-layers 4 --max-kept-tokens 857",
        "communication: 49 all-reduces a call",
        "PREDICTED latency, not measured",
        "a roofline of NVIDIA H100 SXM",
    ):
        assert part in " ".join(run.out.split()), part


def test_no_room_for_the_output_is_one_sentence() -> None:
    command = [sys.executable, "-m", "engine.cli", "plan", *PUBLISHED]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert run.returncode == 2
    assert run.stderr == (
        "what was to be written found no room (No space left on device); free some, and run it again\n"
    )


def test_a_pair_of_two_families_is_planned(sgl: Sgl) -> None:
    """One of the paper's, on four ranks."""
    models = ("--small", "InternVL2-2B", "--large", "LLaVA-OneVision-72B")
    plan = json.loads(sgl("plan", *models, "--tp", 4, "--json").out)
    assert (plan["small"], plan["large"]) == models[1::2]
    assert plan["workload"]["visual_tokens"] == 8830
    assert 140e9 < 4 * plan["ranks"][1]["large"]["language"] < 160e9
    assert plan["ranks"][0]["free"] > 0


def test_any_layer_can_be_pruned_at(sgl: Sgl) -> None:
    assert "KV cache, layers below 7" in sgl("plan", *PUBLISHED, "--prune-layer", 7).out


def test_a_clip_is_planned_in_the_place_of_pictures(sgl: Sgl) -> None:
    out = sgl("plan", *PUBLISHED, "--frames", 16).out
    assert "a question: 4,096 visual tokens (16 frames)" in out
    assert "4,352 visual tokens (1 tiles and 16 frames)" in sgl("plan", *PUBLISHED, "--frames", 16, "--tiles", 1).out


def test_fewer_tiles_are_encoded(sgl: Sgl) -> None:
    options = (*PUBLISHED, "--schedule", "flat", "--retention", "0.09")
    few = sgl("plan", *options, "--encoded-tiles", 8)
    assert "(13 tiles, 8 of them encoded by InternVL2-2B)" in " ".join(few.out.split())
    times = [
        json.loads(sgl("plan", *options, *more, "--json").out)["prediction"]["large"]["first_token"]
        for more in ((), ("--encoded-tiles", 8))
    ]
    assert times[1] < 0.7 * times[0]


def test_json_adds_up(sgl: Sgl) -> None:
    plan = json.loads(sgl("plan", *PUBLISHED, "--tp", 4, "--batch", 3, "--tiles", 7, "--json").out)
    assert (plan["small"], plan["large"], plan["world_size"]) == ("InternVL2-1B", "InternVL2-2B", 4)
    assert plan["workload"] == {
        "frames": 0,
        "tiles": 7,
        "batch": 3,
        "text_tokens": 64,
        "new_tokens": 128,
        "encoded_tiles": None,
        "visual_tokens": 7 * 256,
    }
    leader, worker = plan["ranks"]
    assert worker["small"] is None
    assert worker["large"] == leader["large"]
    assert worker["total"] == sum(worker["large"].values())
    small, large = leader["small"], leader["large"]
    turns = [sum(part[name] for name in ("kv_full", "kv_pruned", "activations")) for part in (small, large)]
    weights = [part[name] for part in (small, large) for name in ("language", "vision")]
    assert leader["features"] == 2 * 256 * 2**20
    assert leader["total"] == sum(weights) + max(turns) + leader["features"]
    assert leader["free"] == plan["usable_bytes"] - leader["total"]
    assert plan["usable_bytes"] == 79 * 2**30
    assert plan["communication"]["all_reduces"] == 49


def test_a_checkpoint_needs_nothing_but_its_configuration(pair: Path, tmp_path: Path, sgl: Sgl) -> None:
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        shutil.copy(pair / name / "config.json", tmp_path / name)
    models = ("--small", tmp_path / "small", "--large", tmp_path / "large")
    plan = json.loads(
        sgl("plan", *models, "--target", "onnxruntime", "--precision", "fp32", "--no-guidance", "--json").out
    )
    assert (plan["prune_layer"], plan["retention_ratio"]) == (None, None)
    assert plan["ranks"][0]["large"]["kv_pruned"] == 0
    assert plan["workload"]["tiles"] == 13


@pytest.fixture(scope="module")
def plan(pair: Path) -> PairPlan:
    return plan_pair(PlanConfig(pair / "small", pair / "large", feature_cache=0))


def test_what_fits_is_the_most_that_does(plan: PairPlan) -> None:
    budget = 12 * 10**6
    tiles, new_tokens = 7, 20

    def total(**changes: int) -> int:
        return plan.memory(replace(workload, **changes), rank=0).total()

    workload = Workload(tiles, new_tokens=new_tokens)
    found = fit(plan, workload, budget)
    assert found.batch > 1
    assert not found.context_of_models
    assert total(batch=found.batch) <= budget < total(batch=found.batch + 1)
    text = found.context - 16 * tiles - new_tokens
    assert total(text_tokens=text) <= budget < total(text_tokens=text + 1)


def test_the_context_ends_where_the_model_does(plan: PairPlan) -> None:
    assert fit(plan, Workload(tiles=1), 10**12) == Fit(batch=1024, context=8192, context_of_models=True)


def test_a_model_that_does_not_fit_says_by_how_much_and_a_remedy_that_helps(pair: Path, sgl: Sgl) -> None:
    models = ("--small", pair / "small", "--large", pair / "large")
    question = ("--tiles", 2, "--text-tokens", 4, "--max-new-tokens", 2, "--feature-cache", 0)

    def ask(*options: str, memory: str = "4.1MB") -> Run:
        return sgl("plan", *models, *question, "--gpu-memory", memory, "--reserve", "0.1MB", *options)

    run = ask()
    assert (run.status, run.out) == (2, "")
    assert run.err == (
        "large in bf16 with small needs 4.7 MB on rank 0 of 1 for one question of 38 tokens, 668.5 kB more than the "
        "4.0 MB that it can use; give --tp 2 or --precision int8\n"
    )
    assert ask("--tp", "2").status == 0
    assert ask("--precision", "int8").status == 0
    assert ask(memory="0.2MB").err.endswith("; choose a smaller model, a shorter question or a larger --gpu-memory\n")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--small", "1B", "--large", "1B", "--tp", "4"), "InternVL2-1B: num_heads 14 does not divide"),
        (
            ("--small", "InternVL2-3B", "--large", "InternVL2-1B"),
            "InternVL2-3B is no checkpoint directory and no published size; known: InternVL2-1B",
        ),
        (
            ("--small", "1B", "--large", "1B", "--precision", "fp32"),
            "target tensorrt is not built in precision fp32; choose bf16 or",
        ),
        (("--small", "1B", "--large", "1B", "--prune-layer", "24"), "--prune-layer 24 is outside 0..23"),
        (
            ("--small", "1B", "--large", "1B", "--tiles", "3", "--encoded-tiles", "4"),
            "--encoded-tiles 4 is more than the question's 3 tiles; give fewer",
        ),
        (
            ("--small", "1B", "--large", "1B", "--no-guidance", "--encoded-tiles", "4"),
            "--encoded-tiles is of a model that keeps some of its visual tokens",
        ),
        (
            ("--small", "Qwen2-VL-2B", "--large", "Qwen2-VL-2B", "--encoded-tiles", "4"),
            "--encoded-tiles is of models that encode tiles one by one, and Qwen2-VL-2B does not",
        ),
        (
            ("--small", "1B", "--large", "1B", "--gpu-memory", "1GB"),
            "--reserve 1.1 GB leaves nothing of --gpu-memory 1.0 GB",
        ),
    ],
)
def test_refusals_are_one_sentence(options: tuple[str, ...], sentence: str, sgl: Sgl) -> None:
    run = sgl("plan", *options)
    assert (run.status, run.out) == (2, "")
    assert sentence in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    "options", [("--gpu-memory", "80 apples"), ("--bandwidth", "0"), ("--bandwidth", "fast"), ("--tp", "0")]
)
def test_arguments_that_are_no_numbers(options: tuple[str, ...], sgl: Sgl) -> None:
    run = sgl("plan", *PUBLISHED, *options)
    assert run.status == 2
    assert options[1] in run.err
