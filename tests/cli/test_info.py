"""`sgl info` and `sgl --version`: what an engine directory holds."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import engine
from engine.engine_directory import read_manifest, write_manifest
from engine.manifest import FileRecord
from engine.units import size_text
from engine.verification import file_sha256
from tests.cli.conftest import Run


def test_text_names_what_is_inside(sgl: Callable[..., Run], engine_directory: Path) -> None:
    run = sgl("info", engine_directory)
    manifest = read_manifest(engine_directory)
    assert (run.status, run.err) == (0, "")
    for part in (
        "onnxruntime fp32",
        "1024 tokens",
        "10 layers · width 128 · heads 8 (key-value 2)",
        "before layer 0, 1, 2, 3, 4",
        manifest.models["small"].checkpoint_sha256[:12],
        manifest.components["large/vision"].key[:12],
        f"onnxscript {manifest.versions['onnxscript']}",
        "exit_threshold 0.9",
    ):
        assert part in run.out
    assert "verified" not in run.out


def test_verify_says_so(sgl: Callable[..., Run], engine_directory: Path) -> None:
    run = sgl("info", engine_directory, "--verify")
    files = [path for path in engine_directory.rglob("*") if path.is_file() and path.parent != engine_directory]
    assert f"all {len(files)} files have the recorded SHA-256" in run.out


def test_json_is_the_manifest_and_more(sgl: Callable[..., Run], engine_directory: Path) -> None:
    content = json.loads(sgl("info", engine_directory, "--json").out)
    written = json.loads((engine_directory / "manifest.json").read_text())
    assert {key: content[key] for key in written} == written
    assert content["bytes"] == sum(
        path.stat().st_size
        for path in engine_directory.rglob("*")
        if path.is_file() and path.parent != engine_directory
    )
    assert (content["quantization"], content["verified"]) == ({}, False)


def test_version(sgl: Callable[..., Run]) -> None:
    assert sgl("--version") == Run(0, f"sgl {engine.__version__}\n", "")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (128_900_000, "128.9 MB"), (4e12, "4.0 TB")],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert size_text(size) == text


def test_quantization_reports_are_summed_up(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(engine_directory, tmp_path / "int8"))
    report = {
        "output": "logits",
        "rows": 7,
        "fidelity": {"cosine": 0.9995, "relative_error": 0.03},
        "max_error": {"per_row": 0.02, "per_block": 0.05},
        "matrices": {
            name: {
                "kernel": kernel,
                "fidelity": {
                    "per_row": {"cosine": tensor, "relative_error": 0.01},
                    "per_block": {"cosine": block, "relative_error": 0.01},
                },
            }
            for name, kernel, tensor, block in (
                ("up", "per_row", 0.9999, 0.9),
                ("down", "per_block", 0.8, 0.9987),
                ("gate", "per_row", 0.9991, 0.9),
                ("head", "float32", 0.1, 0.2),
            )
        },
    }
    path = directory / "small" / "rank0" / "language.quantization.json"
    path.write_text(json.dumps(report))
    list_file(directory, "small/language/rank0", path)
    run = sgl("info", directory)
    line = next(line for line in run.out.splitlines() if "language.quantization.json" in line)
    for part in (
        "4 matrices (2 per_row, 1 per_block, 1 float32)",
        "cosine of logits 0.999500",
        "lowest of a matrix 0.998700 (down)",
    ):
        assert part in line
    content = json.loads(sgl("info", directory, "--json").out)
    assert content["quantization"] == {"small/rank0/language.quantization.json": report}


@pytest.mark.parametrize("content", ["{}", '{"matrices": 1', "[]"])
def test_a_damaged_report_is_one_sentence(
    sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path, content: str
) -> None:
    directory = Path(shutil.copytree(engine_directory, tmp_path / "int8"))
    path = directory / "small" / "rank0" / "language.quantization.json"
    path.write_text(content)
    list_file(directory, "small/language/rank0", path)
    run = sgl("info", directory)
    assert run.status == 2
    assert str(path) in run.err
    assert len(run.err.splitlines()) == 1


def list_file(directory: Path, component: str, path: Path) -> None:
    """Enter a file that was added by hand into the manifest."""
    manifest = read_manifest(directory)
    record = manifest.components[component]
    files = record.files | {path.relative_to(directory).as_posix(): FileRecord(path.stat().st_size, file_sha256(path))}
    components = manifest.components | {component: replace(record, files=files)}
    write_manifest(directory, replace(manifest, components=components))


def test_layers_of_a_target_that_compiles_nothing(sgl: Callable[..., Run], engine_directory: Path) -> None:
    run = sgl("info", engine_directory, "--layers")
    assert run.status == 2
    assert "target onnxruntime, which compiles nothing ahead of time" in run.err
    assert len(run.err.splitlines()) == 1
