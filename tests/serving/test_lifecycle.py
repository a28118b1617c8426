"""A dead model process, and shutting down with questions in progress. On a server of its own."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Server, data_url, serve
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


def test_a_killed_model_is_detected_and_recovered_and_shutdown_drains(
    engine_directory: Path, picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_repository(engine_directory, tmp_path / "repository", ServeConfig(threads=1), link=True)
    explicit = ["--model-control-mode=explicit", *(f"--load-model={model.name}" for model in MODELS)]
    with serve(tmp_path / "repository", tmp_path, *explicit, "--exit-timeout-secs=60") as server:
        health = ["health", "--url", server.url]
        assert main(health) == 0
        assert capsys.readouterr().out.count("answers after") == 3
        os.kill(stubs(server)["large_vlm"], signal.SIGKILL)
        assert main(health) == 2
        assert "large_vlm does not answer" in capsys.readouterr().err
        assert server.is_ready()
        assert main([*health, "--recover"]) == 0
        assert main(health) == 0

        answers: list[dict[str, Any]] = []
        options = {"text_input": "What is this?", "image_url_input": [data_url(picture)], "max_tokens": 60}
        threads = [
            threading.Thread(target=lambda: answers.append(server.generate("sgl", exit_threshold=1.1, **options)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while server.metric("sgl_queue_depth", "sgl") < 3:
            time.sleep(0.05)
        assert server.stop() == 0
        for thread in threads:
            thread.join(60)
        assert [answer.get("generated_tokens") for answer in answers] == [60] * 3, answers
