"""What `sgl health`, `sgl drain` and `sgl watch` send and read; tests/serving calls a real server."""

import argparse
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engine.serve.triton.control import ControlError, Server, header
from tests.cli.conftest import Run

METRICS = """# TYPE sgl_running gauge
sgl_running{model="sgl"} 3
sgl_waiting{model="sgl"} 4
sgl_failures_total{kind="request",model="sgl"} 5
sgl_failures_total{kind="model",model="sgl"} 6
sgl_failures_total{kind="model",model="other"} 7
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, METRICS)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/generate"):
            self.answer(400, '{"error":"the question is empty; ask something"}')
        elif self.headers["admin-key"] != "secret":
            self.answer(403, '{"error":"This API is restricted"}')
        elif self.path.endswith("/index"):
            self.answer(200, '[{"name":"sgl","version":"1","state":"UNAVAILABLE","reason":"unloaded"}]')
        else:
            self.answer(200, "")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_header_opens_what_is_restricted(url: str) -> None:
    with pytest.raises(ControlError, match="This API is restricted"):
        Server(url).unload(30)
    server = Server(url, headers=(("admin-key", "secret"),))
    server.unload(30)
    assert server.is_taken_out(30) and not Server(url).is_taken_out(30)
    server.ping(30)


def test_metrics_are_added_up(url: str) -> None:
    server = Server(url, url)
    assert server.in_flight(30) == 7
    assert server.metric("sgl_failures_total", 30) == 11
    assert server.metric("sgl_failures_total", 30, kind="model") == 6
    assert server.metric("sgl_answers_total", 30) is None


def test_a_header_as_an_argument(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    assert header("admin-key=a=b") == ("admin-key", "a=b")
    assert header(f"admin-key=@{tmp_path / 'key'}") == ("admin-key", "secret")
    for wrong in ("admin-key", "=x", f"admin-key=@{tmp_path / 'none'}", "admin-key=a\nb"):
        with pytest.raises(argparse.ArgumentTypeError):
            header(wrong)


def test_a_server_that_is_not_there(sgl: Callable[..., Run]) -> None:
    nowhere = ["--url", "http://127.0.0.1:1", "--timeout", 1]
    health, drain = sgl("health", *nowhere), sgl("drain", *nowhere)
    assert health.status == 2 and "sgl does not answer at http://127.0.0.1:1" in health.err
    assert drain.status == 2 and "cannot be drained: it does not answer" in drain.err


def test_what_cannot_be_watched(sgl: Callable[..., Run]) -> None:
    assert "is not a number of seconds above 0" in sgl("watch", "--every", "0", "--", "server").err
    run = sgl("watch", "--", "/nowhere/tritonserver", "--option=1")
    assert run.status == 2 and "/nowhere/tritonserver cannot be started" in run.err
