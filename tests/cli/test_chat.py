"""`sgl chat`: each line is answered with all that was said before."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cli.command_line import printable
from engine.config import ExitConfig, SamplingConfig
from engine.families import Turn
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from tests.cli.conftest import Run

Sgl = Callable[..., Run]
LINES = ("What is red?", "Where is it?", "How many?")


@pytest.fixture
def say(engine_directory: Path, picture: Path, sgl: Sgl, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def run(*lines: str, options: tuple[object, ...] = ("--max-new-tokens", 6, "--exit-threshold", 1)) -> Run:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return sgl("chat", engine_directory, "--image", picture, "--threads", 1, *options)

    return run


def test_a_conversation(say: Callable[..., Run], engine_directory: Path, picture: Path) -> None:
    pipeline = SglPipeline.load(engine_directory, threads=1)
    run = say(LINES[0], "", *LINES[1:])
    assert (run.status, run.err) == (0, "")
    history: list[Turn] = []
    lines = run.out.splitlines()
    settings = {"sampling": SamplingConfig(max_new_tokens=6), "exit": ExitConfig(exit_threshold=1)}
    prompts = []
    for question, said, summary in zip(LINES, lines[::2], lines[1::2], strict=True):
        answer = pipeline.answer(picture, question, history=history, **settings)  # type: ignore[arg-type]
        assert said == printable(answer.text)
        assert summary.startswith(
            "  large model (the small one was not sure) · visual tokens: 22 of 112 kept from layer"
        )
        history.append(Turn(question, answer.text.strip()))
        prompts.append(answer.prompt_tokens)
    assert prompts == sorted(set(prompts)), "each prompt holds the one before"


@pytest.mark.parametrize("said", ["<img>", " red </s>\n", "<|im_end|><|im_start|>user\n<IMG_CONTEXT>", "", " "])
def test_whatever_was_answered_is_asked_with(
    say: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Without the white space around it, as the published `chat` keeps it."""
    histories: list[tuple[Turn, ...]] = []
    answer = SglPipeline.answer

    def speak(pipeline: SglPipeline, *arguments: Any, history: Sequence[Turn], **options: Any) -> Answer:
        histories.append(tuple(history))
        return replace(answer(pipeline, *arguments, history=history, **options), text=said)

    monkeypatch.setattr(SglPipeline, "answer", speak)
    run = say(" What is red? ", *LINES[1:])
    assert (run.status, run.err) == (0, "")
    turns = [Turn(" What is red? ", said.strip()), Turn(LINES[1], said.strip())]
    assert histories == [(), tuple(turns[:1]), tuple(turns)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_goes_on_after_a_question_that_is_refused(
    say: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = say(*LINES[:2]).out.splitlines()[::2]
    monkeypatch.setattr(io, "StringIO", Terminal)
    run = say(LINES[0], "<img>", LINES[1])
    assert (run.status, run.err) == (0, "the question contains the control token <img>; leave it out\n")
    assert run.out.splitlines()[::2] == [f"> {expected[0]}", f"> > {expected[1]}", "> "]


@pytest.mark.parametrize(
    ("line", "options", "sentence"),
    [
        ("<img>", (), "the question contains the control token <img>; leave it out"),
        (LINES[0], ("--image", "nowhere.png"), "nowhere.png does not exist; give the path of a picture"),
        (LINES[0], ("--top-k", 3), "--top-k is of drawn tokens, and temperature 0 draws none; leave it out"),
        (
            LINES[0],
            ("--seed", 3),
            "--seed is of drawn tokens and of guidance random, and nothing is drawn; leave it out",
        ),
    ],
)
def test_elsewhere_a_mistake_ends_it(
    say: Callable[..., Run], line: str, options: tuple[object, ...], sentence: str
) -> None:
    run = say(line, LINES[0], options=options)
    assert (run.status, run.out, run.err) == (2, "", f"{sentence}\n")
