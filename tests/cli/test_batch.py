"""`sgl batch` in this process: its output, its summary, its mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from tests.batch.test_request import OPENAI_EXAMPLE, chat, image
from tests.cli.conftest import Run
from tests.cli.test_user_errors import fails
from tools.scenes import make_scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a folder").mkdir()
    make_scene(seed=1, width=80, height=60, objects=3)[0].save(tmp_path / "a folder" / "scene.png")
    return tmp_path / "a folder"


@pytest.fixture
def batch(sgl: Callable[..., Run], engine_directory: Path, folder: Path) -> Callable[..., Run]:
    def run(lines: list[Any], *options: object) -> Run:
        path = folder / "questions.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts), encoding="utf-8")
        output = folder / "answers.jsonl"
        return sgl("batch", engine_directory, "--input", path, "--output", output, "--threads", 1, *options)

    return run


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_are_the_pipelines(batch: Callable[..., Run], engine_directory: Path, folder: Path) -> None:
    """Each line with its own settings over the command's, in the order of the lines."""
    lines = [
        {"id": "a", "image": "scene.png", "question": "What?", "max_new_tokens": 3},
        chat([image("scene.png"), {"type": "text", "text": "What?"}], body={"sgl": {"no_early_exit": True}}),
        "{",
        {"question": "And you?"},
        {"image": "missing.png", "question": "What?"},
    ]
    done = batch(lines, "--max-new-tokens", 6, "--model-name", "pair")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"3 answers and 2 errors are in {folder / 'answers.jsonl'} (")
    assert done.out.count("\n") == 1
    found = answers(folder)
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        short = pipeline.answer(folder / "scene.png", "What?", sampling=SamplingConfig(max_new_tokens=3))
        long = pipeline.answer(
            folder / "scene.png", "What?", exit=ExitConfig(enabled=False), sampling=SamplingConfig(max_new_tokens=6)
        )
    assert (found[0]["id"], found[0]["text"], found[0]["num_kept"]) == ("a", short.text, short.num_kept())
    assert found[0].keys().isdisjoint({"keep_index", "seconds", "picture"})
    body = found[1]["response"]["body"]
    assert (found[1]["custom_id"], body["choices"][0]["message"]["content"]) == ("a", long.text)
    assert (body["model"], body["sgl"]["answered_by"]) == ("pair", "large")
    assert (found[2]["error"]["code"], found[2]["error"]["line"]) == ("invalid_line", 3)
    assert found[3]["id"] == 4
    assert found[4]["error"]["code"] == "invalid_image"
    assert found[4]["error"]["message"] == (
        f"line 5: {folder / 'missing.png'} does not exist; give the path of a picture"
    )


def test_the_summary(batch: Callable[..., Run], folder: Path) -> None:
    lines = [{"image": "scene.png", "question": f"{place}?"} for place in range(5)]
    first = batch(lines, "--json", "--max-new-tokens", 2, "--no-early-exit", "--retention-ratio", 0.25)
    summary = json.loads(first.out)
    found = answers(folder)
    assert (summary["answers"], summary["errors"], summary["early_exit"]) == (5, 0, 0)
    assert summary["generated_tokens"] == sum(answer["generated_tokens"] for answer in found)
    kept = sum(answer["num_kept"] for answer in found) / sum(answer["visual_tokens"] for answer in found)
    assert summary["tokens_kept"] == pytest.approx(kept)
    again = batch(lines, "--json", "--max-new-tokens", 2, "--no-early-exit", "--retention-ratio", 0.25)
    before = json.loads(again.out)
    assert {name: before[name] for name in ("answers", "tokens_kept", "answered_before")} == {
        "answers": 5,
        "tokens_kept": summary["tokens_kept"],
        "answered_before": 5,
    }
    assert answers(folder) == found


@pytest.fixture(scope="module")
def long_engine(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for the 1000 tokens that the published examples ask for."""
    directory = tmp_path_factory.mktemp("long") / "engine"
    build_pair(BuildConfig(pair / "small", pair / "large", directory, max_tokens=1100))
    return directory


def test_the_published_example(sgl: Callable[..., Run], long_engine: Path, folder: Path) -> None:
    """Byte for byte as OpenAI shows it; that vLLM's is read alike, `tests.batch.test_request` says."""
    path, model = folder / "batchinput.jsonl", json.loads(OPENAI_EXAMPLE[0])["body"]["model"]
    path.write_text("".join(f"{line}\n" for line in OPENAI_EXAMPLE), encoding="utf-8")
    words = ("--input", path, "--output", folder / "answers.jsonl", "--model-name", model, "--threads", 1)
    assert sgl("batch", long_engine, *words).status == 0
    found = answers(folder)
    assert [answer["custom_id"] for answer in found] == ["request-1", "request-2"]
    assert [answer["response"]["status_code"] for answer in found] == [200, 200]


def test_mistakes_end_in_a_sentence(
    batch: Callable[..., Run], sgl: Callable[..., Run], engine_directory: Path, folder: Path
) -> None:
    lines = [{"question": "?"}]
    fails(batch(lines, "--threads", 99), "--threads 99 is outside")
    fails(batch(lines, "--timeout", -3), "--timeout -3.0 is not a number above 0")
    output = folder / "answers.jsonl"
    assert not [path for path in folder.iterdir() if path.name.startswith(output.name)]
    assert batch(lines, "--max-new-tokens", 2).status == 0
    other = "answers.jsonl holds answers with another options (options.sampling.max_new_tokens 2 instead of 3)"
    fails(batch(lines, "--max-new-tokens", 3), other)
    fails(
        sgl("batch", engine_directory, "--input", folder / "no", "--output", output), "no does not exist; give a file"
    )
    fails(sgl("batch", engine_directory, "--input", folder, "--output", output), "is no ordinary file")
    path = folder / "questions.jsonl"
    fails(sgl("batch", engine_directory, "--input", path, "--output", folder), "is no ordinary file; give the name")
    fails(sgl("batch", engine_directory, "--input", path, "--output", path), "would be written; name another output")
    (folder / "link.jsonl").symlink_to(path)
    linked = sgl("batch", engine_directory, "--input", path, "--output", folder / "link.jsonl")
    fails(linked, f"{path} holds the questions, and {folder / 'link.jsonl'} would be written; name another output")
    (folder / "mine.jsonl").write_text("mine", encoding="utf-8")
    mine = sgl("batch", engine_directory, "--input", path, "--output", folder / "mine.jsonl")
    fails(mine, "exists and has no journal")
    fails(sgl("batch", folder, "--input", path, "--output", output), "no finished engine directory")
    assert json.loads(path.read_text(encoding="utf-8")) == lines[0]
