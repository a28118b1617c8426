"""The build's command line: what it makes, caches, resumes and refuses."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import build_engines
from engine.cli.build import RESUME
from engine.engine_directory import read_manifest
from engine.verification import verify
from tests.cli.conftest import Run
from tests.cli.test_user_errors import fails

COMPONENTS = {f"{role}/{part}" for role in ("small", "large") for part in ("tokenizer", "vision", "language/rank0")}
STALL = """
import signal, sys, time
import build_engines
from engine.build import builder

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
build_pair = builder.build_pair

def stalling(config, on_progress):
    def report(name, fraction):
        on_progress(name, fraction)
        if name == "large/vision" and fraction < 1:
            print("stalled", flush=True)
            time.sleep(600)
    return build_pair(config, report)

builder.build_pair = stalling
sys.exit(build_engines.main(sys.argv[1:]))
"""
"""The command, stopped for good while it builds `large/vision`."""


def options(pair: Path, out: Path, *more: object) -> list[str]:
    return [str(part) for part in ("--small", pair / "small", "--large", pair / "large", "--out", out, *more)]


@pytest.fixture
def own_pair(pair: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pair, tmp_path / "own"))


@pytest.fixture
def build(sgl: Callable[..., Run]) -> Callable[..., dict[str, Any]]:
    """The JSON object that `sgl build --json` prints."""

    def run(*arguments: object) -> dict[str, Any]:
        done = sgl("build", *arguments, "--json")
        assert (done.status, done.err) == (0, "")
        content: dict[str, Any] = json.loads(done.out)
        return content

    return run


def test_building_twice_is_a_cache_hit(build: Callable[..., dict[str, Any]], pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    first, second = build(*options(pair, out)), build(*options(pair, out))
    assert (set(first["built"]), first["cached"]) == (COMPONENTS, [])
    assert (second["built"], second["resumed"], set(second["cached"])) == ([], [], COMPONENTS)
    assert first["bytes"] == second["bytes"] == read_manifest(out).total_bytes()
    assert first["peak_bytes"] > 10e6


def test_only_what_changed_is_built_again(build: Callable[..., dict[str, Any]], pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    build(*options(pair, out))
    assert build(*options(pair, out, "--prune-layers", "5,2"))["built"] == ["large/language/rank0"]
    assert read_manifest(out).models["large"].prune_layers == (2, 5)


def test_the_last_line_says_what_was_made(pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engine"
    assert build_engines.main(options(pair, out, "--max-tokens", 512, "--max-batch", 2, "--max-tiles", 4)) == 0
    captured = capfd.readouterr()
    assert captured.out.count("\n") == 1
    for part in (str(out), "onnxruntime fp32", " MB (6 built) in ", "peak host memory"):
        assert part in captured.out
    assert [line for line in captured.err.splitlines() if line.endswith("language/rank0 done")] == [
        "small/language/rank0 done",
        "large/language/rank0 done",
    ]
    manifest = read_manifest(out)
    assert (manifest.max_tokens, manifest.max_batch) == (512, 2)
    assert manifest.models["large"].config.tiling.max_tiles == 4


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_resumes(
    build: Callable[..., dict[str, Any]], pair: Path, tmp_path: Path, kill: signal.Signals
) -> None:
    out = tmp_path / "engine"
    child = subprocess.Popen(
        [sys.executable, "-c", STALL, *options(pair, out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "stalled\n"
    child.send_signal(kill)
    _, err = child.communicate(timeout=600)
    if kill is signal.SIGINT:
        assert child.returncode == 130
        assert err.splitlines()[-1] == RESUME
    else:
        assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    report = build(*options(pair, out))
    resumed = {"small/tokenizer", "small/vision", "small/language/rank0", "large/tokenizer"}
    assert set(report["resumed"]) == resumed
    assert set(report["built"]) == COMPONENTS - resumed
    verify(out, read_manifest(out), full=True)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def cut_shard(pair: Path) -> Path:
    path = pair / "large" / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def remove_shard(pair: Path) -> Path:
    path = pair / "large" / "model-00002-of-00003.safetensors"
    path.unlink()
    return path


def name_another_architecture(pair: Path) -> Path:
    path = pair / "small" / "config.json"
    content = json.loads(path.read_text()) | {"architectures": ["PainterModel"], "model_type": "painter"}
    path.write_text(json.dumps(content))
    return path


def break_config(pair: Path) -> Path:
    path = pair / "small" / "config.json"
    path.write_text("{")
    return path


def widen_the_model(pair: Path) -> Path:
    path = pair / "large" / "config.json"
    content = json.loads(path.read_text())
    content["llm_config"]["intermediate_size"] += 8
    path.write_text(json.dumps(content))
    return path.parent


def remove_the_tokenizer(pair: Path) -> Path:
    for path in pair.glob("large/*token*"):
        path.unlink()
    return pair / "large"


def remove_a_tensor(pair: Path) -> Path:
    """The last one that a build would read."""
    path = pair / "large" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = pair / "large" / index["weight_map"].pop("language_model.lm_head.weight")
    path.write_text(json.dumps(index))
    tensors = load_file(shard)
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, shard)
    return path.parent


def forget_the_image_token(pair: Path) -> Path:
    for path in pair.glob("large/*token*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("<IMG_CONTEXT>", "<PICTURE>"), encoding="utf-8")
    return pair / "large"


def remove_the_checkpoint(pair: Path) -> Path:
    shutil.rmtree(pair / "large")
    return pair / "large"


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut_shard, "download it again"),
        (remove_shard, "missing"),
        (name_another_architecture, "PainterModel"),
        (break_config, "cannot be read as JSON"),
        (widen_the_model, "shape"),
        (remove_a_tensor, "tensor language_model.lm_head.weight, the output head, is missing from"),
        (remove_the_tokenizer, "tokenizer"),
        (forget_the_image_token, "has no token <IMG_CONTEXT>"),
        (remove_the_checkpoint, "missing"),
    ],
)
def test_a_bad_checkpoint_leaves_no_engine(
    sgl: Callable[..., Run], own_pair: Path, tmp_path: Path, damage: Callable[[Path], Path], part: str
) -> None:
    out = tmp_path / "out" / "engine"
    place = damage(own_pair)
    run = sgl("build", *options(own_pair, out), "--json")
    fails(run, place, part)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.unfinished"))
    assert not (out.parent / ".engine.lock").exists()
    assert [path.name for path in out.parent.glob(".engine.partial/*")] in ([], ["small.tokenizer"])


def test_a_file_is_no_checkpoint(sgl: Callable[..., Run], pair: Path, tmp_path: Path) -> None:
    path = pair / "small" / "config.json"
    run = sgl("build", "--small", path, "--large", pair / "large", "--out", tmp_path / "engine", "--json")
    fails(run, path / "config.json", "is missing; give the directory of a downloaded checkpoint")


def test_a_foreign_directory_is_refused_before_a_checkpoint_is_read(sgl: Callable[..., Run], tmp_path: Path) -> None:
    out = tmp_path / "engine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    fails(sgl("build", *options(tmp_path / "no pair", out), "--json"), out, "is not empty and not an engine directory")


def test_a_failed_rebuild_leaves_the_engine_as_it_was(
    sgl: Callable[..., Run], build: Callable[..., dict[str, Any]], own_pair: Path, tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    build(*options(own_pair, out))
    before = read_manifest(out)
    widen_the_model(own_pair)
    fails(sgl("build", *options(own_pair, out), "--json"), "shape")
    assert read_manifest(out) == before
    verify(out, before, full=True)


def test_a_directory_of_something_else_is_not_overwritten(sgl: Callable[..., Run], pair: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    fails(sgl("build", *options(pair, tmp_path), "--json"), tmp_path, "choose another --out")
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_progress_stays_on_stderr(pair: Path, tmp_path: Path, sgl: Callable[..., Run]) -> None:
    run = sgl("build", *options(pair, tmp_path / "engine", "--max-tokens", 64))
    assert run.status == 0
    assert run.err.splitlines().count("small/vision done") == 1
    assert run.out.startswith(str(tmp_path / "engine"))


def test_ranks_are_built_one_by_one(
    sgl: Callable[..., Run], build: Callable[..., dict[str, Any]], pair: Path, tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    first = build(*options(pair, out, "--max-tokens", 64, "--tp", 2, "--rank", 1))
    assert first["built"] == ["large/language/rank1"]
    assert (set(first["missing"]), first["bytes"]) == (COMPONENTS, 0)
    refused = "still to build are small/tokenizer, large/tokenizer, small/vision, small/language/rank0, large/vision, "
    refused += "large/language/rank0; run sgl build with --rank 0 and otherwise the options of the ranks that are "
    for command in (("info", out), ("ask", out, "What?")):
        fails(sgl(*command), f"{out / 'manifest.json'} is missing, so {out} is no finished engine directory: ", refused)
    last = build(*options(pair, out, "--max-tokens", 64, "--tp", 2, "--rank", 0))
    assert (set(last["built"]), last["missing"]) == (COMPONENTS, [])
    manifest = read_manifest(out)
    assert (manifest.world_size, last["bytes"]) == (2, manifest.total_bytes())


def test_a_rank_of_one_is_refused(sgl: Callable[..., Run], pair: Path, tmp_path: Path) -> None:
    """It would be the whole model, in the place of the parts that others build."""
    run = sgl("build", *options(pair, tmp_path / "engine", "--rank", 0))
    assert (run.status, run.err) == (2, "--rank 0 is a part of several; give --tp, the number of ranks, as well\n")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (0, 0), (-1, 2)])
def test_a_rank_outside(sgl: Callable[..., Run], pair: Path, tmp_path: Path, rank: int, ranks: int) -> None:
    run = sgl("build", *options(pair, tmp_path / "engine", "--tp", ranks, "--rank", rank))
    assert run.status == 2
    assert len(run.err.splitlines()) == 1
