"""A running Triton Inference Server on loopback, for tests and benchmarks."""

import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from engine.serve.triton.control import Server
from engine.serve.triton.tensors import MODEL
from tools.triton.server_environment import ServerError, install

START_SECONDS = 120.0
STOP_SECONDS = 60.0
CALL_SECONDS = 30.0
NOTHING: Mapping[str, str] = MappingProxyType({})
EXPLICIT = ("--model-control-mode=explicit", f"--load-model={MODEL}")
"""Lets `sgl health --recover` load a model again."""


@dataclass(frozen=True)
class ServerProcess:
    """ports: of `http`, `grpc` and `metrics`."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['metrics']}"

    @property
    def control(self) -> Server:
        return Server(self.url, self.metrics_url)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the model's values of that name."""
        value = self.control.metric(name, CALL_SECONDS, **labels)
        assert value is not None, f"no metric {name}"
        return value

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def wait_until_ready(self) -> None:
        """Raises ServerError."""
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"the server did not start; the end of its log:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def stop(self) -> int:
        """Like an orchestrator: ask, wait, and only then kill. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()


@dataclass(frozen=True)
class Start:
    """How a server is started."""

    command: list[str]
    variables: dict[str, str]
    ports: dict[str, int]


def prepare(
    repository: Path, directory: Path, options: Sequence[str] = (), variables: Mapping[str, str] = NOTHING
) -> Start:
    """Of a server on free ports; `directory` gets its backends. variables: of its processes. Raises ServerError."""
    environment = install()
    ports = _free_ports()
    addresses = [f"--{name}-address=127.0.0.1" for name in ports]
    addresses += [f"--{name}-port={port}" for name, port in ports.items()]
    shutil.rmtree(directory / "backends", ignore_errors=True)
    command = [*environment.command(repository, directory / "backends"), *addresses, *EXPLICIT, *options]
    return Start(command, environment.variables() | dict(variables), ports)


@contextmanager
def serve(
    repository: Path, directory: Path, options: Sequence[str] = (), variables: Mapping[str, str] = NOTHING
) -> Iterator[ServerProcess]:
    """Start a server and wait until it is ready; `directory` gets its log. Raises ServerError."""
    start = prepare(repository, directory, options, variables)
    log = directory / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            start.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=start.variables
        )
    server = ServerProcess(process, start.ports, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def _free_ports() -> dict[str, int]:
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for open_socket in (one, two, three):
            open_socket.bind(("127.0.0.1", 0))
        return {"http": one.getsockname()[1], "grpc": two.getsockname()[1], "metrics": three.getsockname()[1]}
