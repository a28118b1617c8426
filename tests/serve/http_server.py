"""`sgl serve` in a thread of this process, or as a process of its own."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import uvicorn

from engine.options import QuestionConfig
from engine.runtime.pipeline import SglPipeline
from engine.serve.http.desk import Desk, Served
from engine.serve.http.guard import Access
from engine.serve.http.reader import Limits
from engine.serve.http.server import Life, listen, make_server

SECONDS = 120.0
MODEL = "pair"


@dataclass
class HttpServer:
    """A running one."""

    url: str
    desk: Desk
    server: uvicorn.Server

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=SECONDS)

    def post(self, content: object, path: str = "/v1/chat/completions", **headers: str) -> requests.Response:
        """JSON, or bytes as they are."""
        headers = {"Content-Type": "application/json"} | headers
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return requests.post(self.url + path, data, headers=headers, timeout=SECONDS)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def metric(self, name: str) -> float:
        """The sum of its values."""
        lines = self.get("/metrics").text.splitlines()
        values = [float(line.split()[-1]) for line in lines if re.match(rf"sgl_{name}[ {{]", line)]
        assert values, name
        return sum(values)

    def await_metric(self, name: str, value: float) -> None:
        deadline = time.monotonic() + SECONDS
        while (now := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {now} and not {value}"
            time.sleep(0.02)


def served(pipeline: SglPipeline, **limits: object) -> Served:
    config = QuestionConfig(guidance=pipeline.manifest.guidance, exit=pipeline.manifest.exit)
    return Served(pipeline, MODEL, Limits(config, **limits), 1_700_000_000)  # type: ignore[arg-type]


@contextmanager
def running(served: Served, access: Access | None = None, send_buffer: int | None = None) -> Iterator[HttpServer]:
    """send_buffer: bytes that the system takes before a client reads."""
    access = access or Access()
    sock = listen("127.0.0.1", 0)
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server, desk = make_server(served, access, Life())
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    try:
        yield HttpServer(f"http://127.0.0.1:{sock.getsockname()[1]}", desk, server)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


@contextmanager
def process(engine: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and its address."""
    command = [sys.executable, "-m", "engine.cli", "serve", str(engine), "--port", "0", "--threads", "1", *options]
    started = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert started.stdout is not None
        said = []
        for line in started.stdout:
            said.append(line)
            if found := re.search(r"answers at (http://\S+?),", line):
                yield started, found[1]
                break
        else:
            raise AssertionError("".join(said))
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGKILL)
        started.wait(SECONDS)


def send(address: tuple[str, int], data: bytes) -> socket.socket:
    """A connection on which that was sent."""
    sock = socket.create_connection(address, timeout=SECONDS)
    sock.sendall(data)
    return sock
