"""Let a running Triton Inference Server answer the questions in flight; run it before SIGTERM, which does not wait for
those that came over gRPC."""

import argparse
import time

from engine.cli.command_line import run_command
from engine.serve.triton.control import ControlError, Server, add_server_arguments, await_idle, read_server
from engine.serve.triton.tensors import MODEL

SECONDS = 300.0
PING_SECONDS = 10.0
CALL_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    add = parser.add_argument
    add("--timeout", type=float, default=SECONDS, metavar="SECONDS", help="for all answers (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Drain, and return the exit status."""
    return run_command(lambda: drain(read_server(arguments), arguments.timeout))


def drain(server: Server, timeout: float) -> None:
    """Refuse new questions, and return when the last one is answered. Raises ControlError."""
    start = time.monotonic()
    try:
        server.ping(PING_SECONDS)
    except ControlError as error:
        raise ControlError(
            f"{MODEL} at {server.url} cannot be drained: it does not answer ({error}); if its process has died, what "
            "is in flight will never be answered: stop the server, or try sgl health --recover"
        ) from None
    try:
        server.unload(CALL_SECONDS)
        if questions := await_idle(server, start + timeout, CALL_SECONDS):
            raise ControlError(f"{questions:g} questions are left after {timeout:g} s; give a longer --timeout")
    except ControlError as error:
        raise ControlError(f"{MODEL} at {server.url} cannot be drained ({error})") from None
    seconds = time.monotonic() - start
    print(f"{MODEL} at {server.url} answered its last question after {seconds:.1f} s; stop the server now")
