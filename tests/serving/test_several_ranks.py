"""A large model of two ranks behind the real server: the server starts them, and again after one died."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.cli.export import write_repository
from engine.config import ExitConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.serve_config import ServeConfig
from tests.serving.conftest import Server, data_url, serve

pytestmark = pytest.mark.xdist_group("server")
ASK = "What colour is the large circle?"
NEVER = 1.1
RANK = "engine.runtime.tensor_parallel_rank"


def ranks(repository: Path) -> list[int]:
    """Process ids of the ranks that run an engine of the repository."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if RANK in command and "mpiexec" not in command[0] and str(repository) in " ".join(command):
                found.append(int(entry.name))
    return found


def test_ranks_behind_the_server(
    build: Callable[[int], Path], pipeline: SglPipeline, picture: bytes, tmp_path: Path
) -> None:
    sampling = SamplingConfig(max_new_tokens=6)
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=sampling)
    repository = tmp_path / "repository"
    write_repository(build(2), repository, ServeConfig(threads=1, options={"max_new_tokens": 6}))

    def ask(server: Server) -> dict[str, object]:
        return server.generate(text_input=ASK, image_url_input=[data_url(picture)], exit_threshold=NEVER)

    with serve(repository, tmp_path) as server:
        assert ask(server)["text_output"] == expected.text
        first = ranks(repository)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        answers = [ask(server) for _ in range(2)]
        assert "ask again" in str(answers[0].get("error", "ask again"))
        assert answers[1]["text_output"] == expected.text
        assert not set(first) & set(ranks(repository))
        assert server.stop() == 0
    assert not ranks(repository)
