"""A picture, and the `sgl` command run in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.cli.__main__ import main
from tools.scenes import make_scene


@dataclass(frozen=True)
class Run:
    """What a command came to."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """112 visual tokens: six tiles and a thumbnail."""
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    make_scene(seed=1, width=330, height=220, objects=5)[0].save(path)
    return path


@pytest.fixture
def sgl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`sgl("ask", directory, ...)` as a user would type it."""

    def run(*arguments: object) -> Run:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = int(exit.code or 0)
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return run
