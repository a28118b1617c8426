"""A dead model process, on a server of its own."""

import os
import signal
from pathlib import Path

import pytest

from tests.serving.conftest import Server, serve
from tools.export_triton_repository import write_repository
from tools.sgl import main
from tools.triton.serve_config import ServeConfig
from tools.triton.tensors import MODELS

pytestmark = pytest.mark.xdist_group("server")


def stubs(server: Server) -> dict[str, int]:
    """Model -> process id of its Python stub."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text().split("\0")
        except (OSError, IndexError):
            continue
        if parent == server.process.pid and "triton_python_backend_stub" in command[0]:
            name = next(model.name for model in MODELS if f"/{model.name}/" in command[1])
            found[name] = int(entry.name)
    return found


def test_a_killed_model_is_detected_and_recovered(
    engine_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_repository(engine_directory, tmp_path / "repository", ServeConfig(threads=1), link=True)
    explicit = ["--model-control-mode=explicit", *(f"--load-model={model.name}" for model in MODELS)]
    with serve(tmp_path / "repository", tmp_path, *explicit) as server:
        health = ["health", "--url", server.url]
        assert main(health) == 0
        assert capsys.readouterr().out.count("answers after") == 3
        os.kill(stubs(server)["large_vlm"], signal.SIGKILL)
        assert main(health) == 2
        assert "large_vlm does not answer" in capsys.readouterr().err
        assert server.is_ready()
        assert main([*health, "--recover"]) == 0
        assert main(health) == 0
