"""Ask every model of a running Triton Inference Server a real question; readiness alone misses a dead model process."""

import argparse
import base64
import io
import sys
import time
from typing import Any

from PIL import Image

from engine.errors import EngineError
from tools.command_line import run_command
from tools.triton.control import URL, ControlError, load, post, unload
from tools.triton.tensors import LARGE, MODELS, SGL, Model

SECONDS = 30.0
REMEDY = "try --recover or start the server again"


class HealthError(EngineError):
    """A server or a model that does not answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default=URL, help="of the server's HTTP endpoint (default: %(default)s)")
    add("--timeout", type=float, default=SECONDS, metavar="SECONDS", help="for one answer (default: %(default)s)")
    add(
        "--recover",
        action="store_true",
        help="unload and load models that do not answer; the server must run with --model-control-mode=explicit",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, and return the exit status."""
    return run_command(lambda: check(arguments))


def check(arguments: argparse.Namespace) -> None:
    """Raises HealthError for the first model that does not answer."""
    for model in MODELS:
        start = time.perf_counter()
        try:
            probe(arguments.url, model, arguments.timeout)
        except HealthError as error:
            if not arguments.recover:
                raise
            print(f"{error}; loading {model.name} again", file=sys.stderr)
            recover(arguments.url, model, arguments.timeout)
        print(f"{model.name} answers after {time.perf_counter() - start:.2f} s")


def recover(url: str, model: Model, timeout: float) -> None:
    """Unload and load a model, then ask it again. Raises HealthError."""
    try:
        unload(url, model, timeout)
        load(url, model, timeout)
    except ControlError as error:
        raise HealthError(f"{model.name} at {url} cannot be loaded again ({error}); {REMEDY}") from None
    probe(url, model, timeout)


def probe(url: str, model: Model, timeout: float) -> None:
    """A short answer about a tiny picture, through both models where it is the cascade. Raises HealthError."""
    question: dict[str, Any] = {"text_input": "What is this?", "image_url_input": [_picture()], "max_tokens": 1}
    if model is SGL:
        question["exit_threshold"] = 2.0
    try:
        answer = post(url, f"models/{model.name}/generate", question, timeout)
    except ControlError as error:
        raise HealthError(f"{model.name} does not answer at {url} ({error}); {REMEDY}") from None
    if model in (LARGE, SGL) and answer.get("answered_by") != "large":
        raise HealthError(f"{model.name} at {url} answers without the large model; look at the server's log")


def _picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
