"""The model repository on disk; tests/serving asks it behind the real server."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import GuidanceSource
from engine.engine_directory import read_manifest, write_manifest
from engine.manifest import interface_of
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import MODEL
from engine.target import Precision
from tests.cli.conftest import Run


def config(repository: Path) -> str:
    return (repository / MODEL / "config.pbtxt").read_text()


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_the_model_has_its_own_copy_of_the_engine(
    sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path
) -> None:
    run = sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository")
    assert run.status == 0 and f"model sgl is in {tmp_path / 'repository'}" in run.out
    manifest = read_manifest(engine_directory)
    parts = {name for component in manifest.components.values() for name in component.files}
    assert files(tmp_path / "repository" / MODEL / "1" / "engine") == {"manifest.json", *parts}
    assert [path.name for path in (tmp_path / "repository").iterdir()] == [MODEL]
    assert not any(path.is_symlink() for path in (tmp_path / "repository").rglob("*"))


def test_a_linked_repository_holds_no_copy(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    assert sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository", "--link").status == 0
    assert (tmp_path / "repository" / MODEL / "1" / "engine").resolve() == engine_directory.resolve()


def test_options_arrive_in_the_configuration(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    options = ["--max-running", 3, "--max-waiting", 0, "--kv-memory", "2GiB", "--prefill-chunk", 64, "--timeout", 90]
    options += ["--retention-ratio", 0.3, "--exit-threshold", 0.7, "--threads", 3, "--environment", "/srv/python"]
    assert sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository", *options).status == 0
    text = config(tmp_path / "repository")
    for line in (
        "max_batch_size: 1",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        "model_transaction_policy { decoupled: true }",
        "response_cache { enable: false }",
    ):
        assert line in text
    assert "dynamic_batching" not in text
    for key, value in (
        ("engine", "engine"),
        ("max_running", "3"),
        ("max_waiting", "0"),
        ("kv_memory", str(2 * 2**30)),
        ("prefill_chunk", "64"),
        ("timeout", "90.0"),
        ("retention_ratio", "0.3"),
        ("exit_threshold", "0.7"),
        ("threads", "3"),
        ("EXECUTION_ENV_PATH", "/srv/python"),
    ):
        assert f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' in text


def test_gpus_arrive_in_the_configuration(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    """Of an engine in a precision that its target runs on GPUs."""
    engine = shutil.copytree(engine_directory, tmp_path / "fp16")
    manifest = read_manifest(engine)
    half = replace(manifest, precision=Precision.FP16)
    models = {
        name: replace(model, interface=interface_of(half, model.config, model.prune_layers, model.scoring))
        for name, model in manifest.models.items()
    }
    write_manifest(engine, replace(half, models=models))
    assert sgl("export", "--engine", engine, "--out", tmp_path / "repository", "--gpus", "0,3").status == 0
    assert "instance_group [ { kind: KIND_GPU count: 1 gpus: [ 0, 3 ] } ]" in config(tmp_path / "repository")
    apart = sgl("export", "--engine", engine, "--out", tmp_path / "apart", "--gpus", "0,3,2,1", "--small-apart")
    assert apart.status == 0
    assert "gpus: [ 0, 2 ] } ]" in config(tmp_path / "apart"), "the first of each two"
    assert 'key: "gpus" value: { string_value: "0,3,2,1" }' in config(tmp_path / "apart")


def test_parameters_are_read_as_they_were_written() -> None:
    serve = ServeConfig(
        options={
            "max_new_tokens": 7,
            "retention_ratio": 0.29,
            "guidance": GuidanceSource.RANDOM,
            "no_early_exit": True,
            "background": (1, 2, 3),
            "stop": ('"', "two, words"),
        },
        allow_image_urls=True,
        warm_up=False,
        threads=2,
        max_waiting=0,
        kv_memory=2**31,
        timeout=1.5,
    )
    assert ServeConfig.from_parameters(serve.parameters() | {"engine": "engine"}) == serve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune-layer", 77], "--prune-layer 77 is outside 0..9"),
        (["--retention-ratio", 1.5], "--retention-ratio 1.5 is outside (0, 1]"),
        (["--guidance", "oracle"], "--guidance oracle needs the large model's attention"),
        (["--max-waiting", -1], "--max-waiting -1 is below 0"),
        (["--timeout", 0], "--timeout 0.0 is not a number of seconds above 0"),
        (["--kv-memory", "much"], "'much' is not a size such as 80GB"),
        (["--gpus", "a"], "is not a list of numbers"),
        (["--gpus", 0], "was built in precision fp32, which target onnxruntime runs on device cpu only; rebuild"),
        (["--small-apart"], "--small-apart gives the small model a GPU of its own; name 2 or a multiple with --gpus"),
        (["--gpus", "0,1,0"], "--gpus (0, 1, 0) names a GPU twice; one process answers many"),
    ],
)
def test_what_no_question_could_be_answered_with_is_refused(
    sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    run = sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository", *options)
    assert run.status == 2 and message in run.err
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_left_alone(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    run = sgl("export", "--engine", engine_directory, "--out", tmp_path)
    assert run.status == 2 and "exists; remove it" in run.err
    assert (tmp_path / "mine").read_text() == "kept"
