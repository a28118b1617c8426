"""What strangers may send to `sgl serve`, and clients that leave, wait, and read slowly."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from engine.cli.__main__ import main
from engine.runtime.pipeline import SglPipeline
from engine.serve.http import guard
from engine.serve.http import server as serving
from engine.serve.http.guard import Access
from engine.serve.http.server import PatientProtocol
from tests.serve.http_server import MODEL, SECONDS, HttpServer, process, running, send, served

HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
LONG = HI | {"max_tokens": 800, "stream": True, "sgl": {"no_early_exit": True}, "temperature": 2.0}


def request(content: object, *headers: str) -> bytes:
    """As bytes on the line."""
    body = json.dumps(content).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


def refused(response: requests.Response, status: int, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in words), error
    return error


def test_what_is_no_request(server: HttpServer) -> None:
    refused(server.post(b"{"), 400, "cannot be read as JSON")
    refused(server.post(b"\xff\xfe"), 400, "cannot be read as JSON")
    refused(server.post(b"[" * 100_000), 400, "cannot be read as JSON")
    refused(server.post(b'{"model":' + b"[" * 40 + b"]" * 40 + b"}"), 400, "nested more than 32 levels")
    refused(server.post(b"[" + b"{}," * 3_000_000 + b"{}]"), 400, "values")
    refused(server.post(b'{"model": 1e999}'), 400, "no finite number")
    refused(server.post([]), 400)
    refused(server.post({}), 400, "model")
    refused(server.post(HI | {"messages": []}), 400, "messages")
    refused(server.post(HI | {"messages": [{"role": "user", "content": "x" * 3}] * 1001}), 400, "messages")
    refused(server.post(HI | {"temperature": True}), 400, "temperature")
    refused(server.post(HI, **{"Content-Type": "text/plain"}), 415, "send application/json")
    refused(server.post(HI, path="/v1/chat"), 404)
    refused(server.get("/v1/chat/completions"), 405)
    many = [{"type": "image_url", "image_url": {"url": "data:,"}}] * 17
    refused(server.post(HI | {"messages": [{"role": "user", "content": many}]}), 400, "at most 16 are taken")
    assert server.post(HI).status_code == 200


def test_a_page_elsewhere_cannot_ask(server: HttpServer) -> None:
    """By a name of its own that leads here."""
    refused(server.post(HI, Host="evil.example"), 421, "ask for 127.0.0.1")
    for name in ("localhost:1", "[::1]:8000", "127.0.0.1"):
        assert server.get("/version", Host=name).status_code == 200
    assert "Access-Control-Allow-Origin" not in server.get("/v1/models", Origin="http://evil.example").headers


def test_limits_of_size(pipeline: SglPipeline) -> None:
    with running(served(pipeline), Access(max_body=2000)) as server:
        refused(server.post(HI | {"user": "x" * 3000}), 413, "more than 2,000 bytes")

        def parts() -> Iterator[bytes]:
            yield from [b"x" * 500] * 100

        said = requests.post(
            f"{server.url}/v1/chat/completions",
            parts(),  # type: ignore[arg-type] # sent in chunks, without its length
            headers={"Content-Type": "application/json"},
            timeout=SECONDS,
        )
        refused(said, 413)
        assert server.post(HI).status_code == 200
        assert server.desk.in_flight.requests == 0


def test_bytes_in_flight_are_bounded(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CLIENT_BODIES", 0)
    error = server.post(HI)
    refused(error, 429, "too many bytes")
    assert error.headers["Retry-After"] == "1"


def test_head_is_get_without_a_body(server: HttpServer) -> None:
    for path in ("/", "/health", "/v1/models", f"/v1/models/{MODEL}", "/version", "/openapi.json"):
        head, get = (requests.request(method, server.url + path, timeout=SECONDS) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert [head.headers[name] for name in ("Content-Length", "Content-Type")] == [
            get.headers[name] for name in ("Content-Length", "Content-Type")
        ]
    assert requests.head(f"{server.url}/v1/chat/completions", timeout=SECONDS).status_code == 405
    assert requests.head(f"{server.url}/metrics", timeout=SECONDS).status_code == 200


def test_nothing_is_redirected(server: HttpServer) -> None:
    """To a name that a request brings along."""
    refused(requests.get(f"{server.url}/health/", timeout=SECONDS, allow_redirects=False), 404)


def test_a_key(pipeline: SglPipeline) -> None:
    with running(served(pipeline), Access(api_key="open sesame")) as server:
        refused(server.post(HI), 401, "Authorization: Bearer KEY")
        refused(server.post(HI, Authorization="Bearer open"), 401)
        refused(server.get("/v1/models"), 401)
        assert server.post(HI, Authorization="Bearer open sesame").status_code == 200
        assert server.get("/health").status_code == 200
        assert server.get("/", Host="anywhere.example").status_code == 200


def test_too_many_questions(engine_directory: Path) -> None:
    with (
        SglPipeline.load(engine_directory, threads=1, max_running=1, max_waiting=0) as pipeline,
        running(served(pipeline)) as server,
    ):
        answers: list[int] = []
        for _ in range(3):
            streams = [requests.post(f"{server.url}/v1/chat/completions", json=LONG, stream=True, timeout=SECONDS)]
            while len(streams) < 6:
                streams.append(
                    requests.post(f"{server.url}/v1/chat/completions", json=LONG, stream=True, timeout=SECONDS)
                )
            answers += [stream.status_code for stream in streams]
            for stream in streams:
                stream.close()
            if 429 in answers:
                break
        assert set(answers) == {200, 429}
        server.await_metric("running", 0)


def test_time_is_over(pipeline: SglPipeline) -> None:
    with running(served(pipeline, timeout=0.01)) as server:
        refused(server.post(LONG | {"stream": False}), 504, "not answered in its time")
        assert server.post(HI | {"sgl": {"timeout": 60}}).status_code == 200
        refused(server.post(HI | {"sgl": {"timeout": "x"}}), 400, "sgl.timeout is not a number")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: HttpServer, stream: bool) -> None:
    before = server.metric("failures_total")
    sock = send(server.address, request(LONG | {"stream": stream}))
    if stream:
        assert b"200 OK" in sock.recv(100)
    else:
        server.await_metric("running", 1)
    sock.close()
    server.await_metric("failures_total", before + 1)
    server.await_metric("running", 0)
    assert server.desk.in_flight.requests == 0


def test_clients_that_never_end(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """That send nothing, some of a request, or one byte now and then: they are let go, and others do not wait."""
    monkeypatch.setattr(serving, "RECEIVE_SECONDS", 1.0)
    whole = request(HI)
    silent = [send(server.address, part) for part in (b"", whole[:20], whole[:-3], b"GET")]
    slow = send(server.address, b"")
    ended = threading.Event()

    def drip() -> None:
        try:
            for byte in whole:
                slow.sendall(bytes([byte]))
                if ended.wait(0.02):
                    return
        except OSError:
            return

    thread = threading.Thread(target=drip)
    thread.start()
    assert server.post(HI).status_code == 200
    for sock in (*silent, slow):
        sock.settimeout(SECONDS)
        with suppress(ConnectionResetError):
            assert sock.recv(12) in (b"", b"HTTP/1.1 408")
    ended.set()
    thread.join()
    assert server.desk.in_flight.requests == 0


def test_a_client_that_does_not_read(pipeline: SglPipeline, monkeypatch: pytest.MonkeyPatch, urls: list[str]) -> None:
    monkeypatch.setattr(serving, "SEND_SECONDS", 0.5)
    paused = threading.Event()
    pause = PatientProtocol.pause_writing
    monkeypatch.setattr(PatientProtocol, "pause_writing", lambda self: (paused.set(), pause(self)))
    part = {"type": "image_url", "image_url": {"url": urls[0]}}
    content = [part, {"type": "text", "text": "What?"}]
    wanted = HI | {"messages": [{"role": "user", "content": content}], "sgl": {"return_importance": True}}
    with running(served(pipeline), send_buffer=4096) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(server.address)
        sender = threading.Thread(target=lambda: _send_all(sock, request(wanted) * 60), daemon=True)
        sender.start()
        assert paused.wait(SECONDS)
        deadline = time.monotonic() + SECONDS
        while server.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.post(HI).status_code == 200
    sender.join(SECONDS)


def _send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


def test_operations(server: HttpServer) -> None:
    assert server.get("/health").json() == server.get("/health?infer=true").json() == {"status": "ok"}
    assert server.get("/version").json().keys() == {"version"}
    answered = server.metric("answers_total")
    assert server.post(HI).status_code == 200
    assert server.metric("answers_total") == answered + 1
    assert 'sgl_stage_seconds_bucket{le="0.005",model="pair",stage="small prefill"}' in server.get("/metrics").text
    refused(server.get("/health?infer=maybe"), 400, "infer")


@pytest.mark.parametrize("example", ["openai", "vllm"])
def test_published_examples(server: HttpServer, urls: list[str], example: str) -> None:
    """Of the documentation of both, but for the names of model and picture."""
    url = {"url": urls[0]} | ({"detail": "auto"} if example == "openai" else {})
    content = [{"type": "text", "text": "What's in this image?"}, {"type": "image_url", "image_url": url}]
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    body |= {"max_tokens": 300} if example == "openai" else {"max_completion_tokens": 64}
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer none"]
    done = subprocess.run(
        [curl, "--silent", "--fail", f"{server.url}/v1/chat/completions", *headers, "-d", "@-"],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_sigterm_drains(engine_directory: Path) -> None:
    """What is in flight is answered, what comes is refused; the process ends by itself."""
    with process(engine_directory, "--model-name", MODEL, "--timeout", "600") as (server, url):
        ask = f"{url}/v1/chat/completions"
        # So many that the last is not answered before somebody has looked.
        streams = [requests.post(ask, json=LONG | {"seed": n}, stream=True, timeout=SECONDS) for n in range(24)]
        server.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while (said := requests.get(f"{url}/health", timeout=SECONDS)).status_code == 200:
            assert time.monotonic() < deadline
        refused(said, 503, "takes no more")
        refused(requests.post(ask, json=HI, timeout=SECONDS), 503)
        for stream in streams:
            assert [line for line in stream.iter_lines() if line][-1] == b"data: [DONE]"
        assert server.wait(SECONDS) == 0


def test_two_signals_end_it_at_once(engine_directory: Path) -> None:
    with process(engine_directory, "--model-name", MODEL) as (server, url):
        stream = requests.post(f"{url}/v1/chat/completions", json=LONG, stream=True, timeout=SECONDS)
        assert next(stream.iter_lines()).startswith(b"data: ")
        server.send_signal(signal.SIGINT)
        # What it answers may be said before anybody looks: then it has ended.
        with suppress(requests.ConnectionError):
            while requests.get(f"{url}/health", timeout=SECONDS).status_code == 200:
                pass
        with suppress(ProcessLookupError):
            server.send_signal(signal.SIGINT)
        assert server.wait(SECONDS) == 0


def test_what_cannot_be_served(engine_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(engine_directory), "--port", str(taken.getsockname()[1])]) == 2
        assert "cannot be bound" in capsys.readouterr().err
    short = tmp_path / "key"
    short.write_text("abc")
    assert main(["serve", str(engine_directory), "--port", "0", "--api-key-file", str(short)]) == 2
    assert "holds no key of at least 8 printable" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert main(["serve", str(engine_directory), "--port", "0", "--retention-ratio", "3"]) == 2
    assert "--retention-ratio" in capsys.readouterr().err


def test_a_fuzz_of_the_schema(server: HttpServer) -> None:
    """By the document that the server serves; nothing ends in an error of the server."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--max-examples", "25", "--seed", "1", "--request-timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
