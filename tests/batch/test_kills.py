"""`sgl batch` and `sgl evaluate` on one and several ranks, killed again and again: the answers are those of a run that
was left alone."""

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.batch.test_request import chat, image
from tools.batch.kills import Killed, compare, without_time
from tools.batch.processes import PATIENCE_SECONDS, answers_in, decodes, descendants, sgl, started, wait_until_gone
from tools.scenes import make_scene

pytestmark = pytest.mark.xdist_group("tensor parallel")
QUESTIONS = 100
OPTIONS = ("--threads", 1, "--max-new-tokens", 3, "--max-running", 4)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About ten pictures, of both forms; some lines ask nothing, and one is wrong."""
    folder = tmp_path_factory.mktemp("a folder")
    for seed in range(10):
        make_scene(seed=seed, width=60, height=50, objects=3)[0].save(folder / f"scene {seed}.png")
    lines: list[object] = []
    for place in range(QUESTIONS - 1):
        name, text = f"scene {place // 10}.png", f"What is number {place}?"
        if place % 2:
            lines.append({"image": name, "question": text})
        else:
            lines.append(chat([image(name), {"type": "text", "text": text}], custom_id=str(place)))
        lines += [None] * (place % 9 == 0)
    texts = ["" if line is None else json.dumps(line) for line in (*lines, {"image": "none.png", "question": "?"})]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def batch(engine: Path, questions: Path, output: Path, ranks: int, *options: object) -> list[str]:
    return sgl("batch", engine, "--input", questions, "--output", output, *OPTIONS, *options, ranks=ranks)


@pytest.fixture(scope="module")
def whole(engine_directory: Path, questions: Path) -> list[str]:
    """What a run says that nobody disturbs."""
    output = questions.with_name("whole.jsonl")
    summary = Killed(batch(engine_directory, questions, output, 1), output).finish()
    assert (summary["answers"], summary["errors"], summary["answered_before"]) == (QUESTIONS - 1, 1, 0)
    assert (summary["ranks"], summary["output"]) == (1, str(output))
    return without_time(output)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_killed_run_goes_on(
    engine_directory: Path, questions: Path, tmp_path: Path, whole: list[str], ranks: int
) -> None:
    output, chance = tmp_path / "killed.jsonl", random.Random(ranks)
    run = Killed(batch(engine_directory, questions, output, ranks), output)
    while len(run.kills) < 3 and run.kill_once(chance, QUESTIONS // 5):
        pass
    held = answers_in(output)
    summary = run.finish()
    blank = sum(not line for line in questions.read_text(encoding="utf-8").splitlines())
    assert held - blank <= summary["answered_before"] <= held
    assert without_time(output) == whole
    again = run.finish()
    assert again["answered_before"] == QUESTIONS
    assert without_time(output) == whole


def test_the_tool_that_kills(tmp_path: Path) -> None:
    """`python -m tools.batch.kills` in small, with the miniature pair."""
    (said,) = compare(tmp_path, questions=16, kills=1, ranks=(2,))
    assert said.startswith("2 ranks: killed 1 times, the last with ")
    assert said.endswith("and all 16 lines are those of the undisturbed run")


def test_a_benchmark_that_is_killed_goes_on(engine_directory: Path, questions: Path, tmp_path: Path) -> None:
    """On two ranks: the same records, but for their seconds, and nothing is asked twice."""
    rows = [
        {"id": f"q{place}", "image": f"scene {place // 4}.png", "question": f"And {place}?", "answers": ["yes", "a"]}
        for place in range(40)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for seed in range(10):
        (tmp_path / f"scene {seed}.png").symlink_to(questions.parent / f"scene {seed}.png")

    def run(name: str, ranks: int) -> Killed:
        output = tmp_path / f"{name}.jsonl"
        words = ("evaluate", "--engine", engine_directory, "--benchmark", "own", "--data", tmp_path, "--out", output)
        return Killed(sgl(*words, *OPTIONS, "--label", ranks=ranks), output)

    alone, killed, chance = run("alone", 1), run("killed", 2), random.Random(4)
    figures = alone.finish()
    while len(killed.kills) < 3 and killed.kill_once(chance, 12):
        pass
    again = killed.finish()
    for summary in (figures, again):
        del summary["seconds"], summary["out"]
    assert again == figures
    assert records(killed.output) == records(alone.output)
    assert [record["id"] for record in records(alone.output)[1:]] == [row["id"] for row in rows]


def records(path: Path) -> list[dict[str, object]]:
    """But for the seconds."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


def test_others_go_on_without_a_rank_that_died(
    engine_directory: Path, questions: Path, tmp_path: Path, whole: list[str]
) -> None:
    """Where mpiexec lets them: MPICH's with -disable-auto-cleanup, of ranks on machines of their own."""
    output = tmp_path / "answers.jsonl"
    words = batch(engine_directory, questions, output, 3)
    words[1:1] = ["-disable-auto-cleanup", "-launcher", "fork", "-hosts", "one,two,three"]
    with started(words) as process:
        while answers_in(output) < 10:
            assert process.poll() is None
        (rank,) = [child for child in descendants(process.pid) if is_rank(child, 1)]
        os.kill(rank, signal.SIGKILL)
        assert process.wait(PATIENCE_SECONDS * 2) == 0
    assert without_time(output) == whole


def is_rank(process: int, rank: int) -> bool:
    try:
        words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"PMI_RANK={rank}".encode() in words and not decodes(process)


def test_two_runs_on_one_output(engine_directory: Path, questions: Path, tmp_path: Path) -> None:
    """The second ends at once, and the first does not notice; under mpiexec, too."""
    output = tmp_path / "answers.jsonl"
    with started(batch(engine_directory, questions, output, 1)) as process:
        while not answers_in(output):
            assert process.poll() is None
        for ranks in (1, 2):
            again = batch(engine_directory, questions, output, ranks)
            done = subprocess.run(again, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == (
                f"another run is writing {output}; wait until it is done, or write to another file\n"
            )
        wait_until_gone(process, descendants(process.pid))
        assert process.returncode == 0
    assert len(without_time(output)) == QUESTIONS


def test_ranks_write_as_they_come(engine_directory: Path, questions: Path, tmp_path: Path, whole: list[str]) -> None:
    output = tmp_path / "unordered.jsonl"
    run = Killed(batch(engine_directory, questions, output, 2, "--unordered"), output)
    assert run.finish()["answers"] == QUESTIONS - 1
    assert sorted(without_time(output)) == sorted(whole)


def test_a_file_system_that_is_full(engine_directory: Path, questions: Path, tmp_path: Path, whole: list[str]) -> None:
    """As the shell's limit of a file's size has it."""
    output = tmp_path / "answers.jsonl"
    words = batch(engine_directory, questions, output, 1)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 12; exec "$@"', "bash", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (  # a slow machine shows its progress before
        f"{output} cannot be written (File too large); what was answered is kept: make room there, and the same "
        "command continues"
    )
    held = answers_in(output)
    assert 0 < held < QUESTIONS
    summary = Killed(words, output).finish()
    assert 0 < summary["answered_before"] <= held
    assert without_time(output) == whole
