"""Every mistake of a user at `sgl ask` and `sgl info`: one sentence on stderr, exit status 2, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from engine.manifest import FORMAT_VERSION
from tests.cli.conftest import Run

QUESTION = "How many circles are there?"


def fails(run: Run, *parts: object) -> None:
    """One sentence that holds these parts, and nothing else."""
    assert run.status == 2
    assert run.out == ""
    assert run.err.count("\n") == 1
    assert "Traceback" not in run.err
    for part in parts:
        assert str(part) in run.err


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def own_engine(engine_directory: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(engine_directory, tmp_path / "own"))


@pytest.mark.parametrize("command", [("ask", QUESTION), ("info",)])
def test_directory_that_is_no_engine(sgl: Callable[..., Run], tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *rest = command
    fails(sgl(name, tmp_path, *rest), tmp_path, "no finished engine directory", "sgl build")
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_no_engine(sgl: Callable[..., Run], picture: Path) -> None:
    fails(sgl("ask", picture, QUESTION), picture, "no finished engine directory; give another")


def test_drawing_over_the_picture(sgl: Callable[..., Run], engine_directory: Path, picture: Path) -> None:
    before = picture.read_bytes()
    run = sgl("ask", engine_directory, "--image", picture, QUESTION, "--picture", picture)
    fails(run, picture, "is asked about itself")
    assert picture.read_bytes() == before


def test_drawing_of_no_picture(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    run = sgl("ask", engine_directory, QUESTION, "--picture", tmp_path / "out.png")
    fails(run, tmp_path / "out.png", "there is none; give an --image")
    assert list(tmp_path.iterdir()) == []


def test_altered_engine(sgl: Callable[..., Run], own_engine: Path, picture: Path) -> None:
    weights = own_engine / "large" / "rank0" / "language.weights"
    flip_byte(weights, weights.stat().st_size // 2)
    sentence = (weights, "large/language/rank0", "altered", "rebuild")
    fails(sgl("ask", own_engine, "--image", picture, QUESTION), *sentence)
    fails(sgl("info", own_engine, "--verify"), *sentence)


def test_missing_file_of_an_engine(sgl: Callable[..., Run], own_engine: Path, picture: Path) -> None:
    (own_engine / "small" / "vision.onnx").unlink()
    fails(sgl("ask", own_engine, "--image", picture, QUESTION), "small/vision", "missing", "rebuild")


def test_files_that_a_look_finds_wrong_are_named(sgl: Callable[..., Run], own_engine: Path) -> None:
    (own_engine / "small" / "vision.onnx").unlink()
    tokenizer = own_engine / "large" / "tokenizer.json"
    size = tokenizer.stat().st_size
    with tokenizer.open("ab") as file:
        file.write(b" ")
    wrong = ("small/vision.onnx is missing", f"large/tokenizer.json has {size + 1} bytes instead of {size}")
    fails(sgl("info", own_engine), own_engine, *wrong, "rebuild with sgl build")
    shutil.rmtree(own_engine / "large")
    fails(sgl("info", own_engine, "--json"), own_engine, "is missing", " more are not as built; rebuild")


def test_engine_without_a_component(sgl: Callable[..., Run], own_engine: Path, picture: Path) -> None:
    path = own_engine / "manifest.json"
    content = json.loads(path.read_text())
    del content["components"]["large/vision"]
    path.write_text(json.dumps(content))
    fails(sgl("ask", own_engine, "--image", picture, QUESTION), path, "has no component large/vision", "rebuild")


def test_engine_of_another_version(sgl: Callable[..., Run], own_engine: Path) -> None:
    manifest = own_engine / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'))
    fails(sgl("info", own_engine), "format version 99", "rebuild")


def broken_picture(kind: str, good: bytes, path: Path) -> None:
    match kind:
        case "missing":
            return
        case "truncated":
            path.write_bytes(good[: len(good) // 2])
        case "corrupt":
            path.write_bytes(good[:60] + bytes(200) + good[260:])
        case "text":
            path.write_text("not a picture")
        case "directory":
            path.mkdir()
        case "bomb":
            Image.new("1", (10_000, 10_000)).save(path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "does not exist"),
        ("truncated", "damaged or cut off"),
        ("corrupt", "cannot"),
        ("text", "is not a picture"),
        ("directory", "cannot be read (Is a directory)"),
        ("bomb", "scale it below"),
    ],
)
def test_bad_picture(
    sgl: Callable[..., Run], engine_directory: Path, picture: Path, tmp_path: Path, kind: str, sentence: str
) -> None:
    path, drawing = tmp_path / f"{kind}.png", tmp_path / "out.png"
    broken_picture(kind, picture.read_bytes(), path)
    question = ("ask", engine_directory, "--image", picture, "--image", path, QUESTION, "--picture", drawing)
    fails(sgl(*question), path, sentence)
    assert not drawing.exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--max-new-tokens", 1020), ("the engine's 1024", "rebuild with a larger --max-tokens")),
        (("--prune-layer", 5), ("--prune-layer 5 was not built", "--prune-layers 1,2,3,4,5")),
        (("--prune-layer", 10), ("--prune-layer 10 is outside 0..9",)),
        (("--retention-ratio", 0), ("--retention-ratio 0.0 is outside (0, 1]",)),
        (("--score-layers", 1.5), ("--score-layers 1.5 is outside",)),
        (
            ("--average-retention", 0.3, "--prune-layer", 1),
            (
                "--average-retention chooses",
                "leave it out, or --prune-layer",
            ),
        ),
        (("--consistency-retention", -1), ("--consistency-retention -1.0 is outside",)),
        (("--temperature", -1), ("--temperature -1.0 is not a number of at least 0",)),
        (("--temperature", "nan"), ("--temperature nan is not a number",)),
        (("--exit-threshold", "inf"), ("--exit-threshold inf is not finite",)),
        (("--threads", 100_000), ("--threads 100000 is outside 1..",)),
        (("--top-p", 0), ("--top-p 0.0 is outside",)),
        (("--no-guidance", "--retention-ratio", 0.1), ("--no-guidance", "leave it out")),
        (("--no-guidance", "--average-retention", 0.1), ("--no-guidance", "leave it out")),
        (("--no-early-exit", "--exit-threshold", 0.5), ("--no-early-exit", "leave it out")),
        (
            ("--no-guidance", "--guidance", "random"),
            (
                "--no-guidance keeps every",
                "leave it out, or --guidance",
            ),
        ),
        (
            ("--guidance", "random", "--score-rows", "prompt"),
            ("--score-rows is of guidance small and oracle, and random does not read it; leave it out",),
        ),
        (("--guidance", "tome", "--score-layers", 0.5), ("--score-layers is of guidance small and oracle, and tome",)),
        (
            ("--no-guidance", "--no-early-exit", "--score-rows", "prompt"),
            ("--score-rows ranks visual tokens, and without guidance and consistency none is",),
        ),
        (("--seed", 3), ("--seed is of drawn tokens and of guidance random, and nothing is drawn; leave it out",)),
        (("--seed", -3, "--temperature", 1), ("--seed -3 is not a number of at least 0",)),
        (("--top-k", 5), ("--top-k is of drawn tokens, and temperature 0 draws none",)),
        (("--top-p", 1, "--temperature", 0), ("--top-p is of drawn tokens",)),
        (("--exit-criterion", "q1", "--normalise", "mean"), ("--normalise is of the consistency, which q1 does not",)),
        (
            ("--exit-criterion", "confidence", "--consistency-retention", 0.1),
            ("--consistency-retention is of the consistency, which confidence does not ask for",),
        ),
        (("--picture", "kept.doc"), ("kept.doc", "rename")),
        (("--picture", "no/such/place.png"), ("no/such", "create")),
    ],
)
def test_option_that_cannot_be_served(
    sgl: Callable[..., Run],
    engine_directory: Path,
    picture: Path,
    options: tuple[object, ...],
    parts: tuple[str, ...],
) -> None:
    fails(sgl("ask", engine_directory, "--image", picture, QUESTION, *options), *parts)


def test_prompt_longer_than_the_built_maximum(sgl: Callable[..., Run], engine_directory: Path, picture: Path) -> None:
    run = sgl("ask", engine_directory, "--image", picture, "circle " * 1000, "--max-new-tokens", 1)
    fails(run, "the prompt has", "rebuild with a larger --max-tokens")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("ask", "engine", "question", "--colour"), "unrecognized arguments: --colour"),
        (("ask", "engine", "question", "--threads", "0"), "at least 1"),
        (("ask", "engine", "question", "--score-rows", "all"), "last_prompt"),
        (("build", "--small", "a", "--large", "b", "--out", "c", "--prune-layers", "two"), "such as 2,4,9"),
        (("build", "--small", "a", "--large", "b"), "--out"),
        (("paint",), "paint"),
        ((), "COMMAND"),
    ],
)
def test_misspelt_command_line(sgl: Callable[..., Run], arguments: tuple[str, ...], part: str) -> None:
    fails(sgl(*arguments), part, "--help")
