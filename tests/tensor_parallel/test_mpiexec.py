"""Ranks that somebody else started: `mpiexec -n N sgl ask`, its answers and its failures."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.engine_directory import read_manifest, write_manifest
from tests.tensor_parallel.conftest import Engines
from tests.tensor_parallel.test_failure import PATIENCE_SECONDS

pytestmark = pytest.mark.xdist_group("tensor parallel")


def mpiexec(size: int, *arguments: object) -> list[str]:
    here = Path(sys.executable).parent
    return [str(here / "mpiexec"), "-n", str(size), sys.executable, "-m", "engine.cli", "ask", *map(str, arguments)]


def test_mpiexec_answers_like_one_process(engines: Engines, drawn: Path) -> None:
    options = ("What?", "--image", drawn, "--no-early-exit", "--max-new-tokens", 6, "--threads", 1, "--json")
    answers = []
    for command in (
        [sys.executable, "-m", "engine.cli", "ask", str(engines(1)), *map(str, options)],
        [sys.executable, "-m", "engine.cli", "ask", str(engines(2)), *map(str, options)],
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
