"""Ranks that die, hang, or do not fit together; nothing is left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from engine.config import ExitConfig, SamplingConfig
from engine.engine_directory import MANIFEST, read_manifest, write_manifest
from engine.errors import EngineError
from engine.runtime import tensor_parallel_group
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.tensor_parallel import Identity, RanksDiedError, identify
from engine.runtime.tensor_parallel_group import Group
from tests.stand_in_python import stand_in_python
from tests.tensor_parallel.conftest import Engines

pytestmark = pytest.mark.xdist_group("tensor parallel")
NEVER = ExitConfig(enabled=False)
PATIENCE_SECONDS = 300.0
"""What never comes is given up then; a busy machine takes its time."""


def is_running(process: int) -> bool:
    """Whether it is there and more than a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, and before it was read
        return False


def wait_until_gone(processes: tuple[int, ...]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, f"of {processes} some are left"
        time.sleep(0.01)


def ask(pipeline: SglPipeline, picture: Image.Image) -> Answer:
    sampling = SamplingConfig(max_new_tokens=12)
    return pipeline.answer([picture], "What?", exit=NEVER, sampling=sampling)


def test_a_stopped_rank_is_given_up(engines: Engines, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is lost: new ranks might take as long."""
    group = Group()
    with SglPipeline.load(engines(2), threads=1, ranks=group) as pipeline:
        first = group.process_ids()
        os.kill(first[1], signal.SIGSTOP)
        monkeypatch.setattr(group, "_answer_seconds", 0.5)
        with pytest.raises(RanksDiedError, match=r"did not answer within 0.5 s during encode; ask again"):
            ask(pipeline, picture)
        wait_until_gone(first)
        assert not group.process_ids()


def test_ranks_end_with_a_pipeline_that_nobody_holds(engines: Engines, picture: Image.Image) -> None:
    """Also one that answers."""
    for is_busy in (False, True):
        pipeline = SglPipeline.load(engines(2), threads=1)
        group = pipeline._pair._own
        assert group is not None
        ranks = group.process_ids()
        assert len(ranks) == 2 and all(map(is_running, ranks))
        question = Question((picture,), "What?", exit=NEVER, sampling=SamplingConfig(max_new_tokens=800))
        ticket = pipeline.submit(question)
        next(iter(ticket))
        if not is_busy:
            ticket.cancel()
            ticket.wait()
        del pipeline, group
        gc.collect()
        wait_until_gone(ranks)
        ticket.wait()  # which ends, too


def test_ranks_end_with_a_killed_process(engines: Engines) -> None:
    program = (
        "import sys, time\nfrom engine.runtime.tensor_parallel_group import Group\n"
        "from engine.runtime.pipeline import SglPipeline\n"
        "group = Group()\npipeline = SglPipeline.load(sys.argv[1], threads=1, ranks=group)\n"
        "print(*group.process_ids(), flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(engines(2))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ranks = tuple(map(int, process.stdout.readline().split()))
        assert len(ranks) == 2 and all(map(is_running, ranks))
        process.kill()
    wait_until_gone(ranks)


def test_other_fingerprints_are_refused(engines: Engines) -> None:
    """The engine directory was replaced between opening it and starting the ranks."""
    directory = engines(2)
    before = (directory / MANIFEST).read_bytes()
    pipeline = SglPipeline.load(directory, threads=1, preload=False)
    manifest = read_manifest(directory)
    vision = replace(manifest.components["small/vision"], key="another")
    try:
        write_manifest(directory, replace(manifest, components=manifest.components | {"small/vision": vision}))
        with pytest.raises(
            EngineError, match=r"rank 0 on .*tp2 has other fingerprints than the engine that was opened; give all ranks"
        ):
            _ = pipeline.large
    finally:
        (directory / MANIFEST).write_bytes(before)
    group = Group()
    group.open(directory, manifest, threads=1, places=1)
    group.close()


OTHERS: dict[str, Callable[[Identity], Identity]] = {
    "sgl-engine .* instead of 0.0": lambda mine: replace(mine, engine_version="0.0"),
    "numpy .* instead of 0.0": lambda mine: replace(mine, versions=mine.versions | {"numpy": "0.0"}),
}


@pytest.mark.parametrize("said", OTHERS)
def test_other_versions_are_refused(engines: Engines, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Of the process that starts the ranks."""
    manifest = read_manifest(engines(2))
    other = OTHERS[said](identify(manifest))
    monkeypatch.setattr(tensor_parallel_group, "identify", lambda manifest: other)
    with pytest.raises(EngineError, match=rf"rank 0 on .*tp2 is run by {said}; give all ranks the same"):
        Group().open(engines(2), manifest, threads=1, places=1)


VERIFYING = """
import os, sys, time
import engine.verification as verification
from mpi4py import MPI

verify = verification.verify

def slowly(*arguments, **options):
    {what}
    verify(*arguments, **options)

verification.verify = slowly
sys.argv = sys.argv[2:]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""A rank that takes its time to open its engine."""


@pytest.fixture
def slow_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Group]:
    def make(what: str) -> Group:
        program = tmp_path / "rank.py"
        program.write_text(VERIFYING.format(what=what))
        python = stand_in_python(tmp_path, program)
        monkeypatch.setattr(tensor_parallel_group, "_python", lambda: python)
        return Group(answer_seconds=0.5)

    return make


def test_opening_is_waited_for_while_all_ranks_work(
    engines: Engines, slow_group: Callable[[str], Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they have been looked at three times in vain."""
    looks: list[int] = []

    def ticks(process: int) -> int:
        looks.append(process)
        if len(looks) == 4 * 2:
            (tmp_path / "open").touch()
        return len(looks)

    monkeypatch.setattr(tensor_parallel_group, "_ticks", ticks)
    group = slow_group(f"while not os.path.exists({str(tmp_path / 'open')!r}): time.sleep(0.01)")
    group.open(engines(2), read_manifest(engines(2)), threads=1, places=1)
    assert (tmp_path / "open").exists(), "or nothing was waited for"
    assert set(looks) == set(group.process_ids())
    group.close()


def test_a_process_that_works_ticks() -> None:
    process = os.getpid()
    before = tensor_parallel_group._ticks(process)
    while tensor_parallel_group._ticks(process) == before:
        pass
    assert tensor_parallel_group._ticks(process) > before > 0


def test_a_rank_that_does_not_work_is_not_waited_for(
    engines: Engines, slow_group: Callable[[str], Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = slow_group("time.sleep(600 * MPI.COMM_WORLD.rank)")
    stopped: list[int] = []
    stop = tensor_parallel_group._stop
    monkeypatch.setattr(
        tensor_parallel_group, "_stop", lambda process, ranks=(): (stopped.extend(ranks), stop(process, ranks))
    )
    with pytest.raises(EngineError, match=r"did not answer within 0.5 s during (open share|load); ask again"):
        group.open(engines(2), read_manifest(engines(2)), threads=1, places=1)
    assert len(set(stopped)) == 2
    wait_until_gone(tuple(stopped))


def test_ranks_that_cannot_start_say_why(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel_group, "_python", lambda: "/nonexistent/python")
    with pytest.raises(
        EngineError, match=r"mpiexec could not start 2 ranks of .*tp2; see that it runs `/nonexistent/python"
    ):
        Group().open(engines(2), read_manifest(engines(2)), threads=1, places=1)
