"""Calls of a running server's HTTP endpoint."""

import json
import urllib.error
import urllib.request
from typing import Any

from engine.errors import EngineError
from tools.triton.tensors import Model

URL = "http://127.0.0.1:8000"


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


def state(url: str, model: Model, timeout: float) -> str:
    """Such as READY, UNLOADING, UNAVAILABLE. Raises ControlError."""
    index = post(url, "repository/index", {}, timeout)
    return next((str(entry.get("state", "")) for entry in index if entry["name"] == model.name), "")
