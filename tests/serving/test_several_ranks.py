"""A large model of two ranks behind the real server: the server starts them, and again after one died."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from tests.serving.conftest import Server, data_url, serve
from tools.export_triton_repository import write_repository
from tools.make_random_pair import write_pair
from tools.triton.serve_config import ServeConfig

pytestmark = pytest.mark.xdist_group("server")
ASK = "What colour is the large circle?"
NEVER = 1.1


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """World size -> engine directory of the same pair."""
    pair, out = tmp_path_factory.mktemp("pair"), tmp_path_factory.mktemp("engines")
    write_pair(pair, seed=3)
    made = {size: out / f"tp{size}" for size in (1, 2)}
    for size, directory in made.items():
        build_pair(BuildConfig(pair / "small", pair / "large", directory, max_tokens=1024, world_size=size))
    return made


@pytest.fixture
def sharded_server(directories: dict[int, Path], tmp_path: Path) -> Iterator[Server]:
    write_repository(directories[2], tmp_path / "repository", ServeConfig(threads=1, max_tokens=6))
    with serve(tmp_path / "repository", tmp_path) as running:
        yield running


def ranks_of(directory: Path) -> list[int]:
    """Process ids of the ranks that run an engine below this directory."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        ours = any(argument.startswith(str(directory).encode()) for argument in command)
        # mpiexec itself names them too, behind its -n
        if ours and b"engine.runtime.tensor_parallel_rank" in command and b"-n" not in command:
            found.append(int(process))
    return sorted(found)


def test_ranks_behind_the_server(
    sharded_server: Server, directories: dict[int, Path], picture: bytes, tmp_path: Path
) -> None:
    alone = SglPipeline.load(directories[1], threads=1)
    expected = alone.answer(
        picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=SamplingConfig(max_new_tokens=6)
    )
    question = {"text_input": ASK, "image_url_input": [data_url(picture)], "exit_threshold": NEVER}
    assert sharded_server.generate("sgl", **question)["text_output"] == expected.text
    before = ranks_of(tmp_path)
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    answers = [sharded_server.generate("sgl", **question) for _ in range(2)]
    assert "error" not in answers[1]
    assert answers[1]["text_output"] == expected.text
    assert set(ranks_of(tmp_path)).isdisjoint(before)
