"""The model repository on disk; tests/serving asks it behind the real server."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.manifest import read_manifest, write_manifest
from engine.target import Precision
from tests.tools.conftest import Run
from tools.triton.serve_config import ServeConfig

MODELS = ("small_vlm", "large_vlm", "sgl")


def config(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text()


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).parts[0] for path in directory.rglob("*") if path.is_file()}


def test_every_model_has_its_own_part_of_the_engine(
    sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path
) -> None:
    run = sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository")
    assert run.status == 0 and "small_vlm, large_vlm, sgl" in run.out
    parts = {model: files(tmp_path / "repository" / model / "1" / "engine") for model in MODELS}
    assert parts == {
        "small_vlm": {"manifest.json", "small"},
        "large_vlm": {"manifest.json", "large"},
        "sgl": {"manifest.json"},
    }
    assert not any(path.is_symlink() for path in (tmp_path / "repository").rglob("*"))


def test_a_linked_repository_holds_no_copy(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    assert sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository", "--link").status == 0
    for model in MODELS:
        assert (tmp_path / "repository" / model / "1" / "engine").resolve() == engine_directory.resolve()


def test_options_arrive_in_the_configuration(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    options = ["--max-batch", 2, "--queue-delay-us", 700, "--large-instances", 2]
    options += ["--retention-ratio", 0.3, "--exit-threshold", 0.7, "--threads", 3, "--environment", "/srv/python"]
    assert sgl("export", "--engine", engine_directory, "--out", tmp_path / "repository", *options).status == 0
    small, large, cascade = (config(tmp_path / "repository", model) for model in MODELS)
    for text in (small, large):
        assert "max_batch_size: 2" in text
        assert "dynamic_batching { max_queue_delay_microseconds: 700 }" in text
    assert "instance_group [ { kind: KIND_CPU count: 1 } ]" in small
    assert "instance_group [ { kind: KIND_CPU count: 2 } ]" in large
    assert "decoupled: true" in large and "decoupled: true" in cascade and "decoupled: false" in small
    for text in (small, large, cascade):
        assert "response_cache { enable: false }" in text
        for key, value in (
            ("engine", "engine"),
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
    write_manifest(engine, replace(manifest, precision=Precision.FP16))
    options = ["--large-instances", 2, "--large-gpus", "0,3"]
    assert sgl("export", "--engine", engine, "--out", tmp_path / "repository", *options).status == 0
    small, large, _ = (config(tmp_path / "repository", model) for model in MODELS)
    assert "instance_group [ { kind: KIND_CPU count: 1 } ]" in small
    assert "instance_group [ { kind: KIND_GPU count: 2 gpus: [ 0, 3 ] } ]" in large


def test_parameters_are_read_as_they_were_written() -> None:
    serve = ServeConfig(max_tokens=7, retention_ratio=0.29, allow_image_urls=True, warm_up=False, threads=2)
    assert ServeConfig.from_parameters(serve.parameters() | {"engine": "engine"}) == serve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-batch", 99], "max_batch 99 exceeds the engine's 3"),
        (["--prune-layer", 77], "prune_layer 77 is outside 0..9"),
        (["--retention-ratio", 1.5], "retention_ratio 1.5 is outside (0, 1]"),
        (["--queue-delay-us", -1], "queue_delay_us -1 is negative"),
        (["--small-gpus", "a"], "is not a list of numbers"),
        (["--small-gpus", 0], "was built in precision fp32, which target onnxruntime runs on device cpu only; rebuild"),
        (["--large-gpus", "0,1,0"], "large_gpus (0, 1, 0) names a GPU twice; --large-instances 2 puts"),
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
