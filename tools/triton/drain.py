"""Let a running Triton Inference Server answer the questions in flight; run it before SIGTERM.

A server that is told to stop refuses what one model asks of another, so a question between the small and the large
model would end in an error.
"""

import argparse
import time

from tools.command_line import run_command
from tools.triton.control import METRICS_URL, URL, ControlError, metric, unload
from tools.triton.tensors import SGL

SECONDS = 300.0
POLL_SECONDS = 0.2
CALL_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default=URL, help="of the server's HTTP endpoint (default: %(default)s)")
    add("--metrics-url", default=METRICS_URL, help="of the server's metrics endpoint (default: %(default)s)")
    add("--timeout", type=float, default=SECONDS, metavar="SECONDS", help="for all answers (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Drain, and return the exit status."""
    return run_command(lambda: drain(arguments.url, arguments.metrics_url, arguments.timeout))


def drain(url: str, metrics_url: str, timeout: float) -> None:
    """Refuse new questions, and return when the last one is answered. Raises ControlError."""
    start = time.monotonic()
    try:
        unload(url, SGL, CALL_SECONDS)
        # An unloaded model has no metrics.
        while questions := metric(metrics_url, "sgl_queue_depth", SGL.name, CALL_SECONDS):
            if time.monotonic() - start > timeout:
                raise ControlError(f"{questions:g} questions are left after {timeout:g} s; give a longer --timeout")
            time.sleep(POLL_SECONDS)
    except ControlError as error:
        raise ControlError(f"{SGL.name} at {url} cannot be drained ({error})") from None
    print(f"{SGL.name} at {url} answered its last question after {time.monotonic() - start:.1f} s; stop the server now")
