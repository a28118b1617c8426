"""What clients do to `sgl serve` to hold what is others', or to fill its memory and its log."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from engine.runtime.image_url import Medium
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import MOST_CHARACTERS
from engine.serve.http import desk, guard, reader
from engine.serve.http import server as serving
from engine.serve.http.errors import LONGEST
from engine.serve.http.guard import Access
from engine.serve.http.server import PatientProtocol
from tests.serve.http_server import MODEL, SECONDS, HttpServer, process, running, send, served
from tests.serve.test_http import HI, LONG, refused, request

VERSION = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"


def said(sock: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    got = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(65536):
            got += part
    return got


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("later", [b"G", VERSION[:-2], request(HI)[:-3]], ids=["byte", "head", "body"])
def test_a_second_request_that_does_not_come(server: HttpServer, monkeypatch: pytest.MonkeyPatch, later: bytes) -> None:
    """At once with the first, or behind its answer."""
    monkeypatch.setattr(serving, "RECEIVE_SECONDS", 0.5)
    behind = send(server.address, VERSION)
    assert b"200 OK" in behind.recv(1000)
    behind.sendall(later)
    at_once = send(server.address, VERSION + later)
    assert b"HTTP/1.1 408 " in said(behind)
    answers = said(at_once)
    assert answers.startswith(b"HTTP/1.1 200 OK")
    # A head that is no more than begun may be taken for an idle connection.
    assert b"HTTP/1.1 408 " in answers or not later.startswith(b"POST")


def test_what_is_no_http(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    head, _, body = said(send(server.address, b"\x16\x03\x01 hello\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    # Behind an answer, nothing more can be said.
    chunked = b"GET /version HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock = send(server.address, chunked)
    assert b"200 OK" in sock.recv(1000)
    with suppress(OSError):
        sock.sendall(b"none\r\n")
    said(sock)
    both = request(HI, "Transfer-Encoding: chunked").replace(b"\r\n\r\n", b"\r\n\r\n0\r\n\r\n", 1)
    assert b"send one of them" in said(send(server.address, both))
    offered = requests.get(
        f"{server.url}/version", headers={"Connection": "Upgrade", "Upgrade": "h2c"}, timeout=SECONDS
    )
    assert offered.status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_answer_that_nobody_takes(pipeline: SglPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so long that writing it would wait."""
    monkeypatch.setattr(serving, "SEND_SECONDS", 0.5)
    with running(served(pipeline), send_buffer=4096) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(server.address)
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        wait_until(lambda: server.server.server_state.total_requests > 0)
        wait_until(lambda: not server.server.server_state.connections)


def test_a_client_that_leaves_after_it_has_begun_another_request(server: HttpServer) -> None:
    before = server.metric("failures_total")
    sock = send(server.address, request(LONG | {"stream": False}) + VERSION[:20])
    server.await_metric("running", 1)
    sock.close()
    server.await_metric("failures_total", before + 1)


def test_bytes_count_as_they_come(pipeline: SglPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CLIENT_BODIES", 1)
    padded = HI | {"user": "x" * 1000}
    with running(served(pipeline), Access(max_body=2000)) as server:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        half = send(server.address, head + b"Content-Length: 1900\r\n\r\n" + b" " * 1500)
        wait_until(lambda: server.post(padded).status_code == 429)
        half.close()
        wait_until(lambda: server.post(padded).status_code == 200)


def test_json_that_grows(server: HttpServer) -> None:
    many = b'{"metadata": [' + b"1," * 1_000_000 + b"1]}"
    refused(server.post(many), 400, "more than 262,144 values")
    part = {"type": "text", "text": "a"}
    refused(server.post(HI | {"messages": [{"role": "user", "content": [part] * 1001}]}), 400, "messages[0].content")


def test_a_text_that_is_far_too_long(server: HttpServer, pipeline: SglPipeline) -> None:
    """It is not tokenized: this many would take minutes."""
    most = pipeline.manifest.max_tokens * MOST_CHARACTERS
    for text in ("a" * 10_000_000, "a" * (most + 1)):
        messages = [{"role": "user", "content": text}]
        refused(server.post(HI | {"messages": messages}), 422, f"{len(text):,} characters")
        refused(server.post(HI | {"messages": [{"role": "system", "content": text}, *HI["messages"]]}), 422)


@pytest.mark.parametrize(
    "wrong",
    [{"model": "x" * 99_999}, {"x" * 99_999: 1}, {"sgl": {"x" * 99_999: 1}}, {"messages": [{"role": "x" * 99_999}]}],
    ids=["model", "member", "option", "role"],
)
def test_what_was_sent_does_not_come_back_whole(server: HttpServer, wrong: dict[str, Any]) -> None:
    answer = server.post(HI | wrong)
    assert answer.status_code in (400, 404) and len(answer.content) < 2 * LONGEST


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([{"type": "input_audio", "input_audio": {"data": "x"}}], "messages[0].content[0]: Input tag 'input_audio'"),
        ([{"type": "image_url", "image_url": "data:,"}], "messages[0].content[0].image_url: Input should be an object"),
        ([{"type": "text", "text": 3}], "messages[0].content[0].text: Input should be a valid string"),
        ([{"type": "text", "text": "a", "b": 1}], "messages[0].content[0].b: unknown parameter"),
        (["Hi"], "messages[0].content[0]: Input should be"),
        (3, "messages[0].content: Input should be a valid list"),
        (None, "messages[0].content: Field required"),
    ],
)  # fmt: skip
def test_where_a_mistake_is(server: HttpServer, content: Any, place: str) -> None:
    error = refused(server.post(HI | {"messages": [{"role": "user", "content": content}]}), 400)
    assert error["message"].startswith(place)
    assert error["param"] == place.partition(":")[0]
    assert refused(server.post(HI | {"stop": [1]}), 400)["param"] == "stop[0]"


def test_health_of_a_busy_server(engine_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is alive as long as it answers anybody."""
    with (
        SglPipeline.load(engine_directory, threads=1, max_running=1, max_waiting=0) as pipeline,
        running(served(pipeline)) as server,
    ):
        stream = requests.post(f"{server.url}/v1/chat/completions", json=LONG, stream=True, timeout=SECONDS)
        lines = (line for line in stream.iter_lines() if b'"content":"' in line.replace(b": ", b":"))
        next(lines), next(lines)
        assert server.get("/health?infer=true").status_code == 200
        monkeypatch.setattr(desk, "HEALTH_SECONDS", -1.0)
        health = server.get("/health?infer=true")
        still_runs = server.metric("running") == 1
        assert health.status_code == 503 or not still_runs
        stream.close()


def test_one_inference_for_all_who_ask_for_health(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may_end = 0, asyncio.Event()

    async def infer() -> None:
        nonlocal asked
        asked += 1
        await may_end.wait()

    monkeypatch.setattr(server.desk, "_infer", infer)

    async def ask_twenty() -> None:
        asking = [asyncio.create_task(server.desk.infer()) for _ in range(20)]
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(*asking)

    asyncio.run(ask_twenty())
    assert asked == 1


def test_pictures_that_do_not_come(
    pipeline: SglPipeline, monkeypatch: pytest.MonkeyPatch, pictures: list[bytes]
) -> None:
    """Who leaves while others are fetched stands in no line; no line is endless; one that is shown twice comes once."""
    fetched, may_end = [], threading.Event()

    def fetch(url: str, hosts: object, seconds: float, medium: Medium) -> bytes:
        fetched.append(url)
        assert may_end.wait(SECONDS)
        return pictures[0]

    monkeypatch.setattr(reader, "fetch", fetch)
    monkeypatch.setattr(desk, "FETCHERS", 1)
    monkeypatch.setattr(desk, "MOST_FETCHING", 2)
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    wanted = HI | {"messages": [{"role": "user", "content": [part, part, {"type": "text", "text": "What?"}]}]}
    with ExitStack() as stack:
        server = stack.enter_context(running(served(pipeline, image_hosts=("example.org",))))
        stack.callback(may_end.set)
        first = send(server.address, request(wanted | {"max_tokens": 1}, "Connection: close"))
        wait_until(lambda: len(fetched) == 1)
        refused(server.post(wanted | {"sgl": {"timeout": 0.05}}), 504, "in its time")
        second = send(server.address, request(wanted))
        wait_until(lambda: server.desk.in_flight.requests == 2)
        refused(server.post(wanted), 429, "are looked at already")
        second.close()
        wait_until(lambda: server.desk.in_flight.requests == 1)
        may_end.set()
        assert said(first).startswith(b"HTTP/1.1 200 OK")
        assert len(fetched) == 1


def test_a_name_with_a_slash(pipeline: SglPipeline) -> None:
    with running(replace(served(pipeline), model="org/pair")) as server:
        assert server.get("/v1/models/org/pair").json()["id"] == "org/pair"
        assert server.get("/v1/models/org%2Fpair").json()["id"] == "org/pair"
        refused(server.get("/v1/models/org"), 404, "is not served here")


def test_requests_are_logged_where_asked(engine_directory: Path) -> None:
    with process(engine_directory, "--model-name", MODEL, "--log-requests") as (server, url):
        assert requests.post(f"{url}/v1/chat/completions", json=HI, timeout=SECONDS).status_code == 200
        assert server.stdout is not None
        assert '"POST /v1/chat/completions HTTP/1.1" 200' in server.stdout.readline()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_bytes_are_the_clients_and_not_the_proxys(pipeline: SglPipeline, is_trusted: bool) -> None:
    access = Access(trusted_proxies=("127.0.0.1/32", "10.0.0.0/8") if is_trusted else ())
    with running(served(pipeline), access) as server:
        held: list[str] = []
        hold = server.desk.in_flight.hold
        server.desk.in_flight.hold = lambda client: (held.append(client), hold(client))[1]  # type: ignore[method-assign,func-returns-value]
        for forwarded in ("203.0.113.7", "203.0.113.9, 203.0.113.7", "203.0.113.7, 10.1.2.3", "2001:db8::7", "x" * 999):
            assert server.post(HI, **{"X-Forwarded-For": forwarded}).status_code == 200
    trusted = ["203.0.113.7"] * 3 + ["2001:db8::/64", "x" * 255]
    assert held == (trusted if is_trusted else ["127.0.0.1"] * 5)


def test_who_a_client_is() -> None:
    for host, name in (("::ffff:203.0.113.7", "203.0.113.7"), ("2001:db8::1:2:3:4", "2001:db8::/64"), ("unix", "unix")):
        assert guard.client_of({"client": (host, 1)}) == name
    assert guard.client_of({"client": None}) == ""


@pytest.mark.parametrize("path", ["/nowhere", "/health"])
def test_a_body_that_comes_behind_its_answer(server: HttpServer, path: str) -> None:
    """Ends the wait for it: the connection is as good as a new one."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
    before = set(server.server.server_state.connections)
    sock = send(server.address, head.encode())
    assert _until(sock, b"}}").startswith(b"HTTP/1.1 40")
    (protocol,) = set(server.server.server_state.connections) - before
    assert isinstance(protocol, PatientProtocol) and protocol._timer is not None
    sock.sendall(b"null")
    deadline = time.monotonic() + SECONDS
    while protocol._timer is not None or protocol.timeout_keep_alive_task is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sock.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert _until(sock, b"}").startswith(b"HTTP/1.1 200")
    sock.close()


def _until(sock: socket.socket, end: bytes) -> bytes:
    got = b""
    while end not in got:
        part = sock.recv(4096)
        assert part, got
        got += part
    return got
