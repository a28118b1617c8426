"""`sgl info` and `sgl --version`: what an engine directory holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import engine
from engine.manifest import read_manifest
from tests.tools.conftest import Run
from tools.command_line import size_text


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
