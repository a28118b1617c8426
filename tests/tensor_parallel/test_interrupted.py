"""`sgl ask` that ends in the middle of its answer: by Ctrl-C, or because it or a rank was killed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tensor_parallel import held
from tests.tensor_parallel.conftest import Engines
from tests.tensor_parallel.test_failure import PATIENCE_SECONDS, wait_until_gone

pytestmark = pytest.mark.xdist_group("tensor parallel")
STARTED_BY_US = [sys.executable]
STARTED_BY_MPIEXEC = [str(Path(sys.executable).parent / "mpiexec"), "-n", "2", sys.executable]


@dataclass(frozen=True)
class Answering:
    """A command that has printed some of its answer and comes no further until it is let go on.

    processes: it and all that it started.
    """

    job: subprocess.Popen[bytes]
    processes: tuple[int, ...]
    go_on: Callable[[], None]

    def rank(self, number: int) -> int:
        """Its process, one of those that started none."""
        return [process for process in self.processes if not children(process)][number]

    def end(self) -> tuple[int, bytes, str]:
        """Status, the rest of stdout, stderr."""
        stdout, stderr = self.job.communicate(timeout=PATIENCE_SECONDS)
        wait_until_gone(self.processes)
        return self.job.returncode, stdout, stderr.decode()


def children(process: int) -> list[int]:
    """In the order in which it started them."""
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def descendants(process: int) -> Iterator[int]:
    for child in children(process):
        yield child
        yield from descendants(child)


Start = Callable[[list[str]], Answering]


@pytest.fixture
def start(engines: Engines, drawn: Path, tmp_path: Path) -> Iterator[Start]:
    """Ask by a program that is started so."""
    started: list[subprocess.Popen[bytes]] = []

    def make(program: list[str]) -> Answering:
        asked = ["-m", "engine.cli", "ask", str(engines(2)), "What?", "--image", str(drawn), "--no-early-exit"]
        job = subprocess.Popen(
            [*program, held.__file__, *asked, "--max-new-tokens", "800"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"GO_ON": str(tmp_path / "go on")},
            start_new_session=True,
        )
        started.append(job)
        assert job.stdout is not None
        assert job.stdout.read(1)
        return Answering(job, (job.pid, *descendants(job.pid)), (tmp_path / "go on").touch)

    yield make
    for job in started:
        job.kill()
        job.communicate()


def test_ctrl_c_ends_it_with_its_ranks(start: Start) -> None:
    answering = start(STARTED_BY_US)
    assert len(answering.processes) == 1 + 4, "mpiexec, its proxy, two ranks"
    os.killpg(answering.job.pid, signal.SIGINT)
    status, _, said = answering.end()
    assert (status, said) == (130, "\ninterrupted\n")


def test_ctrl_c_ends_the_ranks_of_mpiexec(start: Start) -> None:
    answering = start(STARTED_BY_MPIEXEC)
    assert len(answering.processes) == 1 + 3, "a proxy, two ranks"
    os.killpg(answering.job.pid, signal.SIGINT)
    status, _, said = answering.end()
    assert (status, said) == (130, "\ninterrupted\n"), "mpiexec itself has its say on stdout"


def test_ctrl_c_ends_ranks_that_hang(start: Start) -> None:
    """The leader waits for the other one, for some seconds, and then ends it."""
    answering = start(STARTED_BY_MPIEXEC)
    os.kill(answering.rank(1), signal.SIGSTOP)
    os.killpg(answering.job.pid, signal.SIGINT)
    status, _, said = answering.end()
    assert status == 130
    assert said.startswith("\ninterrupted\n"), "then MPI tells that it was told to end them"


def test_ranks_end_with_a_killed_command(start: Start) -> None:
    answering = start(STARTED_BY_US)
    answering.job.kill()
    status, _, said = answering.end()
    assert (status, said) == (-signal.SIGKILL, "")


def test_an_error_in_the_middle_of_the_text_starts_a_line(engines: Engines, start: Start) -> None:
    answering = start(STARTED_BY_US)
    killed = answering.rank(1)
    os.kill(killed, signal.SIGKILL)
    wait_until_gone((killed,))
    answering.go_on()
    status, text, said = answering.end()
    assert (status, text[-1:]) == (2, b"\n")
    place = re.escape(str(engines(2)))
    sentence = rf"a rank of {place} died during (extend|step|truncate); ask again: the ranks are started anew\n"
    assert re.fullmatch(sentence, said), said


def test_mpiexec_ends_when_a_rank_is_killed(start: Start) -> None:
    answering = start(STARTED_BY_MPIEXEC)
    os.kill(answering.rank(1), signal.SIGKILL)
    answering.go_on()
    status, _, _ = answering.end()
    assert status != 0
