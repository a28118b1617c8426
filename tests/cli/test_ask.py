"""`sgl ask`: what the options do, and what is printed."""

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.cli.command_line import printable
from engine.cli.drawing import GAP, WIDTH
from tests.cli.conftest import Run

QUESTION = "How many circles are there?"
KEYS = {
    "text",
    "answered_by",
    "finish_reason",
    "early_exit",
    "small_text",
    "prompt_tokens",
    "generated_tokens",
    "drafted_tokens",
    "budget",
    "tiles",
    "tiles_skipped",
    "accepted_tokens",
    "speculated_tokens",
    "speculated_accepted_tokens",
    "reuse",
    "visual_tokens",
    "num_kept",
    "guidance",
    "prune_layer",
    "retention_ratio",
    "average_retention",
    "keep_index",
    "tokens",
    "clips",
    "decision",
    "seconds",
    "picture",
}
VISUAL_TOKENS = 112


@pytest.fixture
def ask(sgl: Callable[..., Run], engine_directory: Path, picture: Path) -> Callable[..., dict[str, Any]]:
    """The JSON object that `sgl ask --json` prints for these options."""

    def run(*options: object) -> dict[str, Any]:
        done = sgl("ask", engine_directory, "--image", picture, QUESTION, "--max-new-tokens", 5, "--json", *options)
        assert (done.status, done.err) == (0, "")
        content: dict[str, Any] = json.loads(done.out)
        return content

    return run


def test_json_has_the_documented_keys(ask: Callable[..., dict[str, Any]]) -> None:
    content = ask("--no-early-exit")
    documented = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    assert content.keys() == KEYS
    assert [key for key in KEYS if f"`{key}`" not in documented] == []


def test_the_most_probable_tokens(ask: Callable[..., dict[str, Any]], sgl: Callable[..., Run]) -> None:
    content = ask("--top-logprobs", 3)
    assert len(content["tokens"]) == content["generated_tokens"]
    assert "".join(token["token"] for token in content["tokens"][:2]).startswith(content["text"][:1])
    for token in content["tokens"]:
        assert token.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert token["top_logprobs"][0] == {name: token[name] for name in ("token", "logprob", "bytes")}  # greedy
        assert len(token["top_logprobs"]) == 3
    run = sgl("ask", "engine", QUESTION, "--top-logprobs", 3)
    assert (run.status, "--top-logprobs is told by sgl ask --json only" in run.err) == (2, True)


def test_the_large_model_answers_with_the_kept_tokens(ask: Callable[..., dict[str, Any]]) -> None:
    content = ask("--no-early-exit", "--retention-ratio", 0.25, "--prune-layer", 3)
    assert (content["answered_by"], content["early_exit"], content["decision"]) == ("large", False, None)
    assert (content["visual_tokens"], content["num_kept"], content["prune_layer"]) == (VISUAL_TOKENS, 28, 3)
    assert content["average_retention"] == pytest.approx((3 + 7 * 0.25) / 10)
    assert content["keep_index"] == sorted(set(content["keep_index"]))
    assert len(content["keep_index"]) == 28
    assert {"small vision", "large vision", "large prefill", "large decode"} <= content["seconds"].keys()


def test_an_early_exit_runs_only_the_small_model(ask: Callable[..., dict[str, Any]]) -> None:
    content = ask("--exit-threshold", 0)
    assert (content["answered_by"], content["early_exit"]) == ("small", True)
    assert content["text"] == content["small_text"]
    assert content["decision"]["exit_threshold"] == 0
    assert not [stage for stage in content["seconds"] if stage.startswith("large")]


def test_the_threshold_decides(ask: Callable[..., dict[str, Any]]) -> None:
    value = ask("--exit-criterion", "confidence", "--exit-threshold", 1)["decision"]["value"]
    assert 0 < value < 1
    assert ask("--exit-criterion", "confidence", "--exit-threshold", value)["early_exit"]
    assert not ask("--exit-criterion", "confidence", "--exit-threshold", value * 1.001)["early_exit"]


def test_consistency_options_count(ask: Callable[..., dict[str, Any]]) -> None:
    product, mean, all_tokens = (
        ask("--exit-criterion", "consistency", *options)["decision"]["consistency"]
        for options in (
            (),
            ("--normalise", "mean"),
            ("--normalise", "mean", "--consistency-retention", 1),
        )
    )
    assert product == pytest.approx(mean**5, rel=1e-4)
    assert mean != all_tokens


def test_without_guidance_everything_is_kept(ask: Callable[..., dict[str, Any]]) -> None:
    content = ask("--no-guidance", "--no-early-exit")
    assert (content["num_kept"], content["prune_layer"], content["average_retention"]) == (VISUAL_TOKENS, None, 1)
    assert (content["small_text"], content["keep_index"]) == (None, None)


def test_average_retention_is_met(ask: Callable[..., dict[str, Any]]) -> None:
    content = ask("--no-early-exit", "--average-retention", 0.35)
    assert content["average_retention"] == pytest.approx(0.35, abs=1e-6)


@pytest.mark.parametrize("options", [("--score-rows", "last_prompt"), ("--score-layers", 0.1)])
def test_score_options_change_what_is_kept(ask: Callable[..., dict[str, Any]], options: tuple[object, ...]) -> None:
    assert ask("--no-early-exit")["keep_index"] != ask("--no-early-exit", *options)["keep_index"]


def test_a_baseline_guides_without_the_small_model(ask: Callable[..., dict[str, Any]]) -> None:
    content = ask("--no-early-exit", "--guidance", "random", "--seed", 1)
    assert (content["guidance"], content["num_kept"], content["small_text"]) == ("random", 22, None)
    assert content["keep_index"] != ask("--no-early-exit", "--guidance", "random", "--seed", 2)["keep_index"]
    assert ask("--no-early-exit")["guidance"] == "small"


def test_a_baseline_that_the_engine_cannot_run_is_refused(
    sgl: Callable[..., Run], engine_directory: Path, picture: Path
) -> None:
    run = sgl("ask", engine_directory, "--image", picture, QUESTION, "--guidance", "fastv")
    assert (run.status, run.out) == (2, "")
    assert "rebuild with --large-scores" in run.err


def test_sampling_follows_the_seed(ask: Callable[..., dict[str, Any]]) -> None:
    options = ("--no-early-exit", "--temperature", 2, "--top-k", 50, "--top-p", 0.95, "--seed")
    assert ask(*options, 1)["text"] == ask(*options, 1)["text"]
    assert ask(*options, 1)["text"] != ask(*options, 2)["text"]


def test_a_stop_text_ends_the_answer(ask: Callable[..., dict[str, Any]]) -> None:
    whole = ask("--no-early-exit")["text"]
    stopped = ask("--no-early-exit", "--stop", whole[1:3])
    assert (stopped["text"], stopped["finish_reason"]) == (whole[:1], "stop")


def test_text_streams_before_the_block(
    sgl: Callable[..., Run], ask: Callable[..., dict[str, Any]], engine_directory: Path, picture: Path
) -> None:
    text = printable(ask("--no-early-exit")["text"])
    question = ("ask", engine_directory, "--image", picture, QUESTION, "--max-new-tokens", 5, "--no-early-exit")
    streamed, whole = sgl(*question), sgl(*question, "--no-stream")
    for run in (streamed, whole):
        assert (run.status, run.err) == (0, "")
        assert run.out.startswith(text + "\n  answered by ")
        assert f"22 of {VISUAL_TOKENS} kept from layer 2 on" in run.out


def test_several_pictures_are_drawn_side_by_side(
    ask: Callable[..., dict[str, Any]], picture: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert ask("--picture", one)["picture"] == str(one)
    assert ask("--picture", two, "--image", picture)["visual_tokens"] == 2 * VISUAL_TOKENS
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width == WIDTH + 2 * GAP
        assert second.height == first.height
        assert second.width > 1.8 * first.width


def test_a_question_without_a_picture_is_answered(sgl: Callable[..., Run], engine_directory: Path) -> None:
    run = sgl("ask", engine_directory, "Who are you?", "--max-new-tokens", 3, "--json", "--no-early-exit")
    assert run.status == 0
    assert json.loads(run.out)["visual_tokens"] == 0
    for options in ((), ("--no-early-exit",)):
        run = sgl("ask", engine_directory, "Who are you?", "--max-new-tokens", 3, *options)
        assert re.search(r"^  visual tokens +none, as there is no picture or clip$", run.out, re.MULTILINE)


def test_asking_imports_nothing_of_the_build(engine_directory: Path, picture: Path) -> None:
    code = """
import json, sys
from engine.cli.__main__ import main
status = main(sys.argv[1:])
print(json.dumps([status, sorted(sys.modules)]))
"""
    question = ["ask", str(engine_directory), "--image", str(picture), QUESTION, "--max-new-tokens", "2"]
    run = subprocess.run(
        [sys.executable, "-c", code, *question, "--no-early-exit"], capture_output=True, text=True, check=True
    )
    status, modules = json.loads(run.stdout.splitlines()[-1])
    assert status == 0
    assert "onnxruntime" in modules
    heavy = {
        "torch",
        "transformers",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "engine.build",
        "rich",
        "PIL.ImageDraw",
        "numpy.f2py",
        "llguidance",
    }
    assert heavy & set(modules) == set()


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\tb\n\x9bé汉\x00") == "a\ufffd[2J\tb\n\ufffdé汉\ufffd"


def test_pictures_by_other_names(
    sgl: Callable[..., Run], engine_directory: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the home directory, as a data: URL and on standard input; other URLs are asked for first."""
    question = ("ask", engine_directory, QUESTION, "--max-new-tokens", 3, "--no-early-exit", "--json", "--image")
    expected = json.loads(sgl(*question, picture).out)["keep_index"]
    content = picture.read_bytes()
    monkeypatch.setenv("HOME", str(picture.parent))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    for name in (f"~/{picture.name}", f"data:image/png;base64,{base64.b64encode(content).decode()}", "-"):
        done = sgl(*question, name)
        assert (done.status, done.err) == (0, "")
        assert json.loads(done.out)["keep_index"] == expected
    refused = sgl(*question, "https://example.com/a.png")
    assert (refused.status, refused.out) == (2, "")
    assert "image URLs are not allowed here" in refused.err


def test_a_turned_picture(sgl: Callable[..., Run], engine_directory: Path, tmp_path: Path) -> None:
    """As published, EXIF orientation is not looked at; `--auto-orient` turns."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 240)).save(tmp_path / "tall.jpg", exif=exif)
    question = ("ask", engine_directory, QUESTION, "--image", tmp_path / "tall.jpg", "--max-new-tokens", 1)
    sizes = []
    for options in ((), ("--auto-orient",)):
        done = sgl(*question, "--picture", tmp_path / "kept.png", *options)
        assert (done.status, done.err) == (0, "")
        with Image.open(tmp_path / "kept.png") as drawn:
            sizes.append(drawn.size)
    assert sizes[0] != sizes[1]
