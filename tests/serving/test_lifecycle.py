"""A dead model process, and the end of a server; each on a server of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from engine.cli.__main__ import main
from engine.cli.export import write_repository
from engine.cli.watch import shared_memory, stubs
from engine.config import ExitConfig, SamplingConfig
from engine.errors import EngineError
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import MODEL
from tests.serving.conftest import SECONDS, Server, data_url, grpc_inputs, serve, watched
from tools.triton.server_environment import ServerError

pytestmark = pytest.mark.xdist_group("server")
ASK = "What colour is the large circle?"
NEVER = 1.1
MANY = 12
LONG = 600
"""Tokens of an answer that is still on its way when something happens to the server."""
SERVERS = 3


@pytest.fixture
def repository(engine_directory: Path, tmp_path: Path) -> Path:
    write_repository(
        engine_directory, tmp_path / "repository", ServeConfig(threads=1, options={"max_new_tokens": 40}), link=True
    )
    return tmp_path / "repository"


@pytest.fixture
def own_server(repository: Path, tmp_path: Path) -> Iterator[Server]:
    with serve(repository, tmp_path) as server:
        yield server


@pytest.fixture
def expected(pipeline: SglPipeline, picture: bytes) -> str:
    """The answer that the server gives unless something happens to it."""
    sampling = SamplingConfig(max_new_tokens=40)
    return pipeline.answer(picture, ASK, exit=ExitConfig(exit_threshold=NEVER), sampling=sampling).text


def ask(server: Server, picture: bytes, **options: Any) -> dict[str, Any]:
    return server.generate(text_input=ASK, image_url_input=[data_url(picture)], exit_threshold=NEVER, **options)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_questions(server: Server, count: int = MANY) -> None:
    """Until all have arrived and one is being answered."""
    wait_for(lambda: server.metric("sgl_questions_total") >= count and server.metric("sgl_pieces_total") > 0)


def serving_process(server: Server) -> int:
    """The process id of the server that `sgl watch` runs."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return next(int(child) for child in children if "tritonserver" in Path(f"/proc/{child}/cmdline").read_text())


def test_a_killed_model_is_detected_and_recovered(
    repository: Path, tmp_path: Path, picture: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its gauges start anew; `sgl drain` says what is the matter. A model that is killed while it holds a lock of its
    server's takes that with it: then it is another server's turn."""
    for attempt in range(SERVERS):
        place = tmp_path / str(attempt)
        place.mkdir()
        # The server keeps the dead model for as long as it may when it stops.
        with serve(repository, place, "--exit-timeout-secs=3") as server:
            try:
                kill_and_recover(server, picture, capsys)
            except (AssertionError, OSError, EngineError):
                if not is_gone(server):
                    raise
            else:
                return
    pytest.fail(f"{SERVERS} servers died with their models")


def is_gone(server: Server) -> bool:
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(timeout=5)
    return server.process.poll() is not None


def kill_and_recover(server: Server, picture: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    urls = ["--url", server.url, "--metrics-url", server.metrics_url]
    assert main(["health", *urls]) == 0
    assert "sgl answers after" in capsys.readouterr().out
    with server.grpc(cancel=True) as (client, results):
        inputs = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": NEVER, "max_tokens": LONG}
        client.async_stream_infer(MODEL, grpc_inputs(inputs | {"stream": True}))
        results.get(timeout=SECONDS)
        server.await_metric("sgl_running", 1)
        (stub,) = stubs(server.process.pid)
        os.kill(stub, signal.SIGKILL)
        assert main(["health", *urls]) == 2
        assert "sgl does not answer" in capsys.readouterr().err

        assert main(["drain", *urls]) == 2
        assert "if its process has died, what is in flight will never be answered" in capsys.readouterr().err
        assert main(["health", *urls, "--recover"]) == 0
        assert main(["health", *urls]) == 0
        server.await_metric("sgl_running", 0)


def test_more_at_once_than_allowed_is_refused(engine_directory: Path, tmp_path: Path, picture: bytes) -> None:
    config = ServeConfig(threads=1, max_running=1, max_waiting=0)
    write_repository(engine_directory, tmp_path / "repository", config, link=True)
    long = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": NEVER, "max_tokens": LONG}
    with serve(tmp_path / "repository", tmp_path) as server:
        with server.grpc(cancel=True) as (client, results):
            client.async_stream_infer(MODEL, grpc_inputs(long | {"stream": True}))
            results.get(timeout=SECONDS)
            assert "ask again later, or another server" in ask(server, picture)["error"]
        server.await_metric("sgl_failures_total", 1, kind="overloaded")
        server.await_metric("sgl_running", 0)
        assert "error" not in ask(server, picture)


def test_a_drained_server_answered_every_question(
    own_server: Server, expected: str, picture: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(MANY) as pool:
        answers = [pool.submit(ask, own_server, picture) for _ in range(MANY)]
        wait_for_questions(own_server)
        processes = stubs(own_server.process.pid)
        assert main(["drain", "--url", own_server.url, "--metrics-url", own_server.metrics_url]) == 0
        assert "answered its last question" in capsys.readouterr().out
        assert "error" in ask(own_server, picture)
        assert own_server.stop() == 0
    assert [answer.result().get("text_output") for answer in answers] == [expected] * MANY
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_a_shutdown_ends_every_question(own_server: Server, expected: str, picture: bytes) -> None:
    """Over HTTP the server waits for them by itself; no process is left."""
    with ThreadPoolExecutor(MANY) as pool:
        answers = [pool.submit(ask, own_server, picture) for _ in range(MANY)]
        wait_for_questions(own_server)
        processes = stubs(own_server.process.pid)
        assert processes
        assert own_server.stop() == 0
    for answer in (answer.result() for answer in answers):
        assert answer.get("text_output") == expected or "error" in answer
    assert any("text_output" in answer.result() for answer in answers)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_watched_server_that_fails_lets_nobody_wait(
    repository: Path, tmp_path: Path, expected: str, picture: bytes, how: signal.Signals
) -> None:
    """Of a killed process clients hear within `--every`, of one that hangs within `--timeout` more, and the time that a
    loaded machine takes for it."""
    every, timeout = 1.0, 5.0
    options = [f"--every={every}", f"--timeout={timeout}"]
    with watched(repository, tmp_path, *options) as server:
        assert ask(server, picture)["text_output"] == expected
        process = serving_process(server)
        (stub,) = stubs(process)
        shared = shared_memory(process)
        assert shared and all(file.exists() for file in shared)
        with server.grpc(cancel=True) as (client, results), ThreadPoolExecutor(MANY) as pool:
            inputs = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": NEVER, "max_tokens": LONG}
            client.async_stream_infer(MODEL, grpc_inputs(inputs | {"stream": True}))
            results.get(timeout=SECONDS)
            answers = [pool.submit(failure_of, server, picture) for _ in range(MANY)]
            wait_for_questions(server)
            killed = time.monotonic()
            os.kill(stub, how)
            while results.get(timeout=SECONDS)[1] is None:
                pass
            heard = [time.monotonic(), *(answer.result(timeout=SECONDS) for answer in answers)]
        server.wait_until_ready()
        assert ask(server, picture)["text_output"] == expected
        assert serving_process(server) != process
        assert not any(file.exists() for file in shared)
        assert server.stop() == 0
        assert max(heard) - killed < every + timeout + 10


def failure_of(server: Server, picture: bytes) -> float:
    """When a question that takes long ended in an error, or in an answer that came before anything happened."""
    with suppress(OSError, HTTPException):
        ask(server, picture, max_tokens=LONG)
    return time.monotonic()


def test_a_watched_server_is_drained_by_sigterm(
    repository: Path, tmp_path: Path, expected: str, picture: bytes
) -> None:
    with watched(repository, tmp_path) as server, ThreadPoolExecutor(MANY) as pool:
        answers = [pool.submit(ask, server, picture) for _ in range(MANY)]
        with server.grpc() as (client, results):
            inputs = {"text_input": ASK, "image_bytes_input": [picture], "exit_threshold": NEVER}
            client.async_stream_infer(MODEL, grpc_inputs(inputs))
            wait_for_questions(server, MANY + 1)
            process = serving_process(server)
            server.process.send_signal(signal.SIGTERM)
            result, error = results.get(timeout=SECONDS)
            assert error is None and result.as_numpy("text_output")[0, 0].decode() == expected
        assert [answer.result()["text_output"] for answer in answers] == [expected] * MANY
        assert server.process.wait(SECONDS) == 0
        assert not Path(f"/proc/{process}").exists()


def test_a_watched_server_that_cannot_start_is_not_started_again(repository: Path, tmp_path: Path) -> None:
    (repository / MODEL / "1" / "engine").unlink()
    with (
        pytest.raises(ServerError, match=r"the server ended with status \d+ before sgl answered; see its log"),
        watched(repository, tmp_path),
    ):
        pass
