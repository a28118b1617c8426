"""Ranks that somebody else started: `mpiexec -n N sgl ask`, its answers and its failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from engine.manifest import read_manifest, write_manifest
from tests.tensor_parallel import held as held_program
from tests.tensor_parallel.conftest import Engines
from tests.tensor_parallel.test_failure import PATIENCE_SECONDS, wait_until_gone

pytestmark = pytest.mark.xdist_group("tensor parallel")


def mpiexec(size: int, *arguments: object) -> list[str]:
    here = Path(sys.executable).parent
    return [str(here / "mpiexec"), "-n", str(size), sys.executable, "-m", "tools.sgl", "ask", *map(str, arguments)]


def held(command: list[str], place: Path) -> tuple[list[str], dict[str, str]]:
    """The same, with its environment: after its first words it waits for `place / "go on"`."""
    program = command.index(sys.executable) + 1
    # the package is found as `-m` would find it
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "GO_ON": str(place / "go on")}
    return [*command[:program], held_program.__file__, *command[program:]], environment


@pytest.fixture
def drawn(picture: Image.Image, tmp_path: Path) -> Path:
    picture.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_mpiexec_answers_like_one_process(engines: Engines, drawn: Path) -> None:
    options = ("What?", "--image", drawn, "--no-early-exit", "--max-new-tokens", 6, "--threads", 1, "--json")
    answers = []
    for command in (
        [sys.executable, "-m", "tools.sgl", "ask", str(engines(1)), *map(str, options)],
        [sys.executable, "-m", "tools.sgl", "ask", str(engines(2)), *map(str, options)],
        mpiexec(2, engines(2), *options),
        mpiexec(4, engines(4), *options),
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert (done.returncode, done.stderr) == (0, "")
        answers.append({name: value for name, value in json.loads(done.stdout).items() if name != "seconds"})
    assert answers[0]["answered_by"] == "large"
    assert answers.count(answers[0]) == len(answers)


@pytest.mark.parametrize(
    ("built", "started", "said"),
    [
        (2, 4, "was built for world size 2, but mpiexec started 4; give mpiexec -n 2, or rebuild with --tp 4\n"),
        (1, 2, "was built for world size 1, but mpiexec started 2; give mpiexec -n 1, or rebuild with --tp 2\n"),
    ],
)
def test_mpiexec_with_another_number_is_refused(engines: Engines, built: int, started: int, said: str) -> None:
    done = subprocess.run(
        mpiexec(started, engines(built), "What?"), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{engines(built)} {said}"


def test_the_mpiexec_of_another_mpi_is_refused(engines: Engines) -> None:
    """To mpi4py, every process that it starts is alone."""
    command = mpiexec(2, engines(2), "What?")[3:]
    environment = os.environ | {"OMPI_COMM_WORLD_SIZE": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "mpiexec started 2 processes, and mpi4py sees 1: they are of different MPIs; "
        f"use the mpiexec of this Python environment ({sys.prefix}/bin)"
    )


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise ImportError(\"No module named 'mpi4py'\")", "No module named 'mpi4py'"),
        ("raise RuntimeError('cannot load MPI library\\nlibmpi.so: cannot open')", "cannot load MPI library"),
    ],
)
def test_an_environment_without_mpi_says_so(engines: Engines, tmp_path: Path, broken: str, reason: str) -> None:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text(broken)
    command = mpiexec(2, engines(2), "What?")[3:]
    environment = os.environ | {"PMI_SIZE": "2", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"mpiexec started this, but MPI does not work in this environment ({reason}); pip install 'sgl-engine[mpi]'\n"
    )


def test_an_error_in_the_middle_of_the_text_starts_a_line(engines: Engines, drawn: Path, tmp_path: Path) -> None:
    asked = mpiexec(2, engines(2), "What?", "--image", drawn, "--no-early-exit", "--max-new-tokens", 800)[3:]
    command, environment = held(asked, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as job:
        assert job.stdout is not None and job.stderr is not None
        job.stdout.read(1)
        processes = map(int, filter(str.isdecimal, os.listdir("/proc")))
        ranks = [process for process in processes if is_rank_of(process, job.pid, above=3)]
        os.kill(ranks[1], signal.SIGKILL)
        wait_until_gone((ranks[1],))
        (tmp_path / "go on").touch()
        assert job.stdout.read().endswith(b"\n")
        assert job.stderr.read().decode() == (
            f"a rank of {engines(2)} died during step; ask again: the ranks are started anew\n"
        )
        assert job.wait(PATIENCE_SECONDS) == 2


def test_ranks_with_other_engines_are_refused(engines: Engines, drawn: Path, tmp_path: Path) -> None:
    """Two machines, so to speak: the same path means another directory to each rank."""
    for place in ("here", "there"):
        shutil.copytree(engines(2), tmp_path / place / "pair")
    manifest = read_manifest(tmp_path / "there" / "pair")
    vision = replace(manifest.components["small/vision"], key="another")
    write_manifest(
        tmp_path / "there" / "pair",
        replace(manifest, components=manifest.components | {"small/vision": vision}),
    )
    launch, _, _, *program = mpiexec(1, "pair", "What?", "--image", drawn, "--no-early-exit")
    # the package is found from anywhere, as when it is installed
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parts = [["-n", "1", "-wdir", str(tmp_path / place), *program] for place in ("here", "there")]
    command = [launch, *parts[0], ":", *parts[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"rank 1 on \S+: pair has other fingerprints than the engine that was opened; give all ranks the same .*\n",
        done.stderr,
    )


def test_mpiexec_ends_when_a_rank_is_killed(engines: Engines, drawn: Path, tmp_path: Path) -> None:
    """In the middle of an answer, which would never end."""
    asked = mpiexec(2, engines(2), "What?", "--image", drawn, "--no-early-exit", "--max-new-tokens", 800)
    command, environment = held(asked, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as job:
        assert job.stdout is not None
        job.stdout.read(1)
        processes = map(int, filter(str.isdecimal, os.listdir("/proc")))
        ranks = tuple(process for process in processes if is_rank_of(process, job.pid))
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert job.wait(PATIENCE_SECONDS) != 0
    wait_until_gone(ranks)


def is_rank_of(process: int, job: int, above: int = 2) -> bool:
    """Whether mpiexec started it, through its proxy: `above` it so many generations is the job."""

    def parent(child: int) -> int:
        try:
            return int(Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except FileNotFoundError:
            return 0

    for _ in range(above):
        process = parent(process)
    return process == job
