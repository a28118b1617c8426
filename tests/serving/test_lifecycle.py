"""A dead model process, and the end of a server; each on a server of its own."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.config import ExitConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from tests.serving.conftest import Server, data_url, grpc_inputs, serve
from tools.export_triton_repository import write_repository
from tools.sgl import main
from tools.triton.serve_config import ServeConfig
from tools.triton.tensors import MODELS

pytestmark = pytest.mark.xdist_group("server")
ASK = "What colour is the large circle?"
NEVER = 1.1
MANY = 12


@pytest.fixture
def repository(engine_directory: Path, tmp_path: Path) -> Path:
    write_repository(engine_directory, tmp_path / "repository", ServeConfig(threads=1, max_tokens=40), link=True)
    return tmp_path / "repository"


@pytest.fixture
def own_server(repository: Path, tmp_path: Path) -> Iterator[Server]:
    with serve(repository, tmp_path) as server:
        yield server


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


def ask(server: Server, picture: bytes) -> dict[str, Any]:
    return server.generate("sgl", text_input=ASK, image_url_input=[data_url(picture)], exit_threshold=NEVER)


def wait_for_questions(server: Server) -> None:
    """Until all have arrived and the large model has answered one."""
    while (
        server.metric("sgl_questions_total", "sgl") < MANY or server.metric("sgl_invocations_total", "large_vlm") == 0
    ):
        time.sleep(0.02)


def test_a_killed_model_is_detected_and_recovered(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The server keeps the dead model for as long as it may when it stops.
    with serve(repository, tmp_path, "--exit-timeout-secs=3") as server:
        health = ["health", "--url", server.url]
        assert main(health) == 0
        assert capsys.readouterr().out.count("answers after") == 3
        os.kill(stubs(server)["large_vlm"], signal.SIGKILL)
        assert main(health) == 2
        assert "large_vlm does not answer" in capsys.readouterr().err
        assert server.is_ready()
        assert main([*health, "--recover"]) == 0
        assert main(health) == 0


def test_more_at_once_than_allowed_is_refused(engine_directory: Path, tmp_path: Path, picture: bytes) -> None:
    write_repository(engine_directory, tmp_path / "repository", ServeConfig(threads=1, max_in_flight=1), link=True)
    long = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": NEVER, "max_tokens": 600}
    with serve(tmp_path / "repository", tmp_path) as server:
        with server.grpc(cancel=True) as (client, results):
            client.async_stream_infer("sgl", grpc_inputs(long | {"stream": True}))
            results.get(timeout=60)
            assert "as many as max_in_flight, 1; ask again later" in ask(server, picture)["error"]
        while server.metric("sgl_queue_depth", "sgl"):
            time.sleep(0.02)
        assert "error" not in ask(server, picture)


def test_a_drained_server_answered_every_question(
    own_server: Server, pipeline: SglPipeline, picture: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = SamplingConfig(max_new_tokens=40)
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=sampling).text
    with ThreadPoolExecutor(MANY) as pool:
        answers = [pool.submit(ask, own_server, picture) for _ in range(MANY)]
        wait_for_questions(own_server)
        assert not all(answer.done() for answer in answers)
        assert main(["drain", "--url", own_server.url, "--metrics-url", own_server.metrics_url]) == 0
        assert "answered its last question" in capsys.readouterr().out
        assert "error" in ask(own_server, picture)
        processes = stubs(own_server)
        assert own_server.stop() == 0
    assert [answer.result().get("text_output") for answer in answers] == [expected] * MANY
    assert not any(Path(f"/proc/{process}").exists() for process in processes.values())


def test_a_shutdown_ends_every_question(own_server: Server, pipeline: SglPipeline, picture: bytes) -> None:
    """Whole answers for those that the large model had, one sentence for the others, and no process is left."""
    sampling = SamplingConfig(max_new_tokens=40)
    expected = pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=sampling).text
    with ThreadPoolExecutor(MANY) as pool:
        answers = [pool.submit(ask, own_server, picture) for _ in range(MANY)]
        wait_for_questions(own_server)
        processes = stubs(own_server)
        assert own_server.stop() == 0
    for answer in (answer.result() for answer in answers):
        assert answer.get("text_output") == expected or "ask again, or another server" in answer["error"]
    assert any("text_output" in answer.result() for answer in answers)
    assert not any(Path(f"/proc/{process}").exists() for process in processes.values())
