"""Ask a running Triton Inference Server a real question, of both models; readiness alone misses a dead process."""

import argparse
import sys
import time

from engine.cli.command_line import run_command
from engine.errors import EngineError
from engine.serve.triton.control import ControlError, Server, add_server_arguments, read_server
from engine.serve.triton.tensors import MODEL

SECONDS = 30.0
LOAD_SECONDS = 600.0
REMEDY = "try --recover or start the server again"


class HealthError(EngineError):
    """A server or a model that does not answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    add = parser.add_argument
    add("--timeout", type=float, default=SECONDS, metavar="SECONDS", help="for one answer (default: %(default)s)")
    add(
        "--recover",
        action="store_true",
        help="unload and load a model that does not answer; the server must run with --model-control-mode=explicit",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, and return the exit status."""
    return run_command(lambda: check(read_server(arguments), arguments.timeout, arguments.recover))


def check(server: Server, timeout: float, recovers: bool) -> None:
    """Raises HealthError for a model that does not answer."""
    start = time.perf_counter()
    try:
        probe(server, timeout)
    except HealthError as error:
        if not recovers:
            raise
        print(f"{error}; loading {MODEL} again", file=sys.stderr)
        recover(server, timeout)
    print(f"{MODEL} answers after {time.perf_counter() - start:.2f} s")


def recover(server: Server, timeout: float) -> None:
    """Unload and load the model, then ask it again. Raises HealthError."""
    try:
        server.unload(LOAD_SECONDS)
        server.load(LOAD_SECONDS)
    except ControlError as error:
        raise HealthError(f"{MODEL} at {server.url} cannot be loaded again ({error}); {REMEDY}") from None
    probe(server, timeout)


def probe(server: Server, timeout: float) -> None:
    """Raises HealthError."""
    try:
        server.ask(timeout)
    except ControlError as error:
        raise HealthError(f"{MODEL} does not answer at {server.url} ({error}); {REMEDY}") from None
