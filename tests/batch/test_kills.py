"""`sgl batch` on one and several ranks, killed again and again: the answers are those of a run that was left alone."""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.conftest import Write
from tests.batch.kills import PATIENCE_SECONDS, Killed, answers_in, command, started, wait_until_gone, without_time
from tests.batch.test_request import chat, image
from tools.scenes import make_scene

pytestmark = pytest.mark.xdist_group("tensor parallel")
QUESTIONS = 100
OPTIONS = ("--threads", 1, "--max-new-tokens", 3, "--max-running", 4)
Undisturbed = Callable[[], Path]


@pytest.fixture
def questions(write: Write, folder: Path) -> Path:
    """About ten pictures, of both forms; some lines ask nothing, and one is wrong."""
    for seed in range(10):
        make_scene(seed=seed, width=60, height=50, objects=3)[0].save(folder / f"scene {seed}.png")
    lines: list[object] = []
    for place in range(QUESTIONS - 1):
        name, text = f"scene {place // 10}.png", f"What is number {place}?"
        if place % 2:
            lines.append({"image": name, "question": text})
        else:
            lines.append(chat([image(name), {"type": "text", "text": text}], custom_id=str(place)))
        lines += [""] * (place % 9 == 0)
    return write([*lines, {"image": "none.png", "question": "?"}])


@pytest.fixture
def whole(engine_directory: Path, questions: Path, folder: Path) -> list[str]:
    """What a run says that nobody disturbs."""
    output = folder / "whole.jsonl"
    run = Killed(command(engine_directory, questions, output, 1, *OPTIONS), output)
    summary = run.finish()
    assert (summary["answers"], summary["errors"], summary["answered_before"]) == (QUESTIONS - 1, 1, 0)
    assert (summary["ranks"], summary["output"]) == (1, str(output))
    return without_time(output)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_killed_run_goes_on(
    engine_directory: Path, questions: Path, folder: Path, whole: list[str], ranks: int
) -> None:
    output, chance = folder / "killed.jsonl", random.Random(ranks)
    run = Killed(command(engine_directory, questions, output, ranks, *OPTIONS), output)
    while len(run.kills) < 3 and run.kill_once(chance, QUESTIONS):
        pass
    held = answers_in(output)
    assert held >= 3
    summary = run.finish()
    blank = sum(not line for line in questions.read_text(encoding="utf-8").splitlines())
    assert held - blank <= summary["answered_before"] <= held
    assert without_time(output) == whole
    again = run.finish()
    assert again["answered_before"] == QUESTIONS
    assert without_time(output) == whole


def test_two_runs_on_one_output(engine_directory: Path, questions: Path, folder: Path) -> None:
    """The second ends at once, and the first does not notice; under mpiexec, too."""
    output = folder / "answers.jsonl"
    with started(command(engine_directory, questions, output, 1, *OPTIONS)) as process:
        while not answers_in(output):
            assert process.poll() is None
        for ranks in (1, 2):
            again = command(engine_directory, questions, output, ranks, *OPTIONS)
            done = subprocess.run(again, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == (
                f"another run is writing {output}; wait until it is done, or write to another file\n"
            )
        wait_until_gone(process)
        assert process.returncode == 0
    assert len(without_time(output)) == QUESTIONS


def test_ranks_write_as_they_come(engine_directory: Path, questions: Path, folder: Path, whole: list[str]) -> None:
    output = folder / "unordered.jsonl"
    run = Killed(command(engine_directory, questions, output, 2, *OPTIONS, "--unordered"), output)
    assert run.finish()["answers"] == QUESTIONS - 1
    assert sorted(without_time(output)) == sorted(whole)


def test_a_file_system_that_is_full(engine_directory: Path, questions: Path, folder: Path, whole: list[str]) -> None:
    """As the shell's limit of a file's size has it."""
    output = folder / "answers.jsonl"
    words = command(engine_directory, questions, output, 1, *OPTIONS)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"{output} cannot be written (File too large); what was answered is kept: make room there, and the same "
        "command continues\n"
    )
    held = answers_in(output)
    assert 0 < held < QUESTIONS
    summary = Killed(words, output).finish()
    assert 0 < summary["answered_before"] <= held
    assert without_time(output) == whole
