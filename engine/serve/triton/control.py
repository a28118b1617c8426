"""Calls of a running server's HTTP and metrics endpoints."""

import argparse
import base64
import io
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from engine.errors import EngineError
from engine.serve.triton.tensors import EMPTY, MODEL

URL = "http://127.0.0.1:8000"
METRICS_URL = "http://127.0.0.1:8002"
TAKEN_OUT = ("UNAVAILABLE", "UNLOADING")
GRACE_SECONDS = 10.0
"""For the server to say itself that a question was not answered in its time."""


class ControlError(EngineError):
    """A server or a model that does not do what it was asked."""


@dataclass(frozen=True)
class Server:
    """headers: sent along, for endpoints that the server restricts."""

    url: str = URL
    metrics_url: str = METRICS_URL
    headers: tuple[tuple[str, str], ...] = ()

    def post(self, path: str, content: dict[str, Any], timeout: float) -> Any:
        """The answer, parsed; None if it is empty. Raises ControlError with the reason only."""
        request = urllib.request.Request(f"{self.url}/v2/{path}", json.dumps(content).encode())
        for name, value in (("Content-Type", "application/json"), *self.headers):
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace").strip() or str(error)
            raise ControlError(reason) from None
        except (OSError, ValueError) as error:
            raise ControlError(str(error)) from None

    def unload(self, timeout: float) -> None:
        """Take no further questions; those in flight are still answered. Raises ControlError."""
        self.post(f"repository/models/{MODEL}/unload", {}, timeout)

    def load(self, timeout: float) -> None:
        """Raises ControlError."""
        self.post(f"repository/models/{MODEL}/load", {}, timeout)

    def is_taken_out(self, timeout: float) -> bool:
        """Whether the server says that the model was unloaded; of one that is dead, it says that it is there."""
        try:
            index = self.post("repository/index", {}, timeout)
        except ControlError:
            return False
        return any(entry["name"] == MODEL and entry.get("state") in TAKEN_OUT for entry in index)

    def ping(self, timeout: float) -> None:
        """An answer of the model's process that needs no engine: to a question without a word. Raises ControlError."""
        try:
            self.post(f"models/{MODEL}/generate", {"text_input": ""}, timeout)
        except ControlError as error:
            if EMPTY in str(error):
                return
            raise

    def ask(self, timeout: float) -> None:
        """A short answer about a tiny picture, through both models. Raises ControlError."""
        question = {
            "text_input": "What is this?",
            "image_url_input": [_picture()],
            "max_tokens": 1,
            "exit_threshold": 2.0,
            "timeout": timeout,
        }
        answer = self.post(f"models/{MODEL}/generate", question, timeout + GRACE_SECONDS) or {}
        answered_by = answer.get("answered_by")
        if answered_by != "large":
            raise ControlError(f"the answer came from {answered_by or 'nobody'} and not from the large model")

    def metric(self, name: str, timeout: float, **labels: str) -> float | None:
        """The sum of the model's values of that name; None if there is none. Raises ControlError."""
        try:
            with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=timeout) as response:
                lines = response.read().decode().splitlines()
        except (OSError, ValueError) as error:
            raise ControlError(f"no metrics at {self.metrics_url}: {error}") from None
        wanted = [f'{key}="{value}"' for key, value in ({"model": MODEL} | labels).items()]
        found = [line for line in lines if line.startswith(f"{name}{{") and all(label in line for label in wanted)]
        return sum(float(line.split()[-1]) for line in found) if found else None

    def in_flight(self, timeout: float) -> float:
        """Questions that are not yet answered. Raises ControlError."""
        return sum(self.metric(name, timeout) or 0.0 for name in ("sgl_running", "sgl_waiting"))


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default=URL, help="of the server's HTTP endpoint (default: %(default)s)")
    add("--metrics-url", default=METRICS_URL, help="of the server's metrics endpoint (default: %(default)s)")
    add(
        "--header",
        type=header,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="to send along, as the server's --http-restricted-api wants; VALUE may be @FILE; may be repeated",
    )


def read_server(arguments: argparse.Namespace) -> Server:
    return Server(arguments.url.rstrip("/"), arguments.metrics_url.rstrip("/"), tuple(arguments.header))


def header(text: str) -> tuple[str, str]:
    """An argument such as `admin-key=secret` or `admin-key=@/run/secrets/triton`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{name!r} has no value; write NAME=VALUE or NAME=@FILE")
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"the file of {name!r} cannot be read ({error})") from None
    if not (name + value).isprintable():
        raise argparse.ArgumentTypeError(f"{name!r} or its value holds what no header can")
    return name, value


def await_idle(server: Server, deadline: float, call_seconds: float, every: float = 0.2) -> float:
    """Wait until no question is in flight, or the time is over -> how many are. Raises ControlError.

    An unloaded model has no metrics.
    """
    while (questions := server.in_flight(call_seconds)) and time.monotonic() < deadline:
        time.sleep(every)
    return questions


def _picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
