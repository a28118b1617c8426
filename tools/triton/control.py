"""Calls of a running server's HTTP and metrics endpoints."""

import json
import urllib.error
import urllib.request
from typing import Any

from engine.errors import EngineError
from tools.triton.tensors import Model

URL = "http://127.0.0.1:8000"
METRICS_URL = "http://127.0.0.1:8002"


class ControlError(EngineError):
    """A server or a model that does not do what it was asked."""


def post(url: str, path: str, content: dict[str, Any], timeout: float) -> Any:
    """The answer, parsed; None if it is empty. Raises ControlError with the reason only."""
    request = urllib.request.Request(f"{url}/v2/{path}", json.dumps(content).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace").strip() or str(error)
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ControlError(reason)


def unload(url: str, model: Model, timeout: float) -> None:
    """Take no further questions; those in flight are still answered. Raises ControlError."""
    post(url, f"repository/models/{model.name}/unload", {}, timeout)


def load(url: str, model: Model, timeout: float) -> None:
    """Raises ControlError."""
    post(url, f"repository/models/{model.name}/load", {}, timeout)


def metric(url: str, name: str, model: str, timeout: float) -> float | None:
    """The first value of that name and model; None if there is none. Raises ControlError."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=timeout) as response:
            lines = response.read().decode().splitlines()
    except OSError as error:
        raise ControlError(f"no metrics at {url}: {error}") from None
    found = [line for line in lines if line.startswith(f"{name}{{") and f'model="{model}"' in line]
    return float(found[0].split()[-1]) if found else None
