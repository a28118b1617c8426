"""Run a Triton Inference Server and watch over it: one whose model process has died, or does not answer, is killed, so
that no client waits for ever, and started again. SIGTERM drains and stops it."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.cli.command_line import run_command
from engine.errors import EngineError
from engine.serve.triton.control import ControlError, Server, add_server_arguments, read_server
from engine.serve.triton.tensors import MODEL

SIGNALS = (signal.SIGTERM, signal.SIGINT)
START_SECONDS = 1800.0
EXIT_SECONDS = 45.0
"""For the server to end after SIGTERM; by itself it waits --exit-timeout-secs at most, 30 by default."""
DELAYS = (0.0, 2.0, 5.0, 15.0, 30.0, 60.0)
"""Seconds before a start, by how many have followed each other."""
HEALTHY_SECONDS = 600.0
"""After which a server that fails again is started at once."""
SHARED_MEMORY = "/dev/shm/triton_python_backend"
ASK_AGAIN_SECONDS = 5.0
SIGNS_OF_LIFE = ("sgl_answers_total", "sgl_pieces_total")
STUB = "triton_python_backend_stub"
CALL_SECONDS = 30.0


class WatchError(EngineError):
    """A server that cannot be run."""


@dataclass(frozen=True)
class Pace:
    """Seconds: between two probes of the model's process, and for its answer; between two real questions, and for
    theirs, unless others are answered meanwhile; for questions in flight when the server is to stop."""

    every: float = 2.0
    timeout: float = 10.0
    ask_every: float = 60.0
    ask_timeout: float = 120.0
    drain: float = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    add = parser.add_argument
    for name, text in (
        ("every", "between two looks at the model's process"),
        ("timeout", "for its answer"),
        ("ask-every", "between two real questions"),
        ("ask-timeout", "for an answer, unless others are answered meanwhile"),
        ("drain", "for questions in flight, after SIGTERM"),
    ):
        value = getattr(Pace, name.replace("-", "_"))
        add(f"--{name}", type=seconds, default=value, metavar="SECONDS", help=f"{text} (default: %(default)s)")
    add("command", nargs="+", metavar="COMMAND", help="that starts the server, after --")


def seconds(text: str) -> float:
    """An argument that is a time to wait."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Watch until the server is told to stop, and return the exit status."""
    server = read_server(arguments)
    pace = Pace(arguments.every, arguments.timeout, arguments.ask_every, arguments.ask_timeout, arguments.drain)
    status = 0

    def watch_over() -> None:
        nonlocal status
        status = watch(server, arguments.command, pace)

    return run_command(watch_over) or status


def watch(server: Server, command: list[str], pace: Pace) -> int:
    """Returns the server's exit status once it was told to stop. Raises WatchError where it cannot even start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are waited for
    try:
        return keep_running(server, command, pace)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def keep_running(server: Server, command: list[str], pace: Pace) -> int:
    """Start it, and again."""
    starts, was_ready = 0, False
    while True:
        if told_to_stop(DELAYS[min(starts, len(DELAYS) - 1)]):
            return 0
        started = time.monotonic()
        process = start(command)
        say(f"started {command[0]} as process {process.pid}")
        reason = guard(server, process, pace)
        if reason is None:
            return stop(server, process, pace.drain)
        was_ready |= reason.was_ready
        kill(process)
        if not was_ready:
            raise WatchError(f"{reason.text}; see its log")
        starts = 0 if time.monotonic() - started > HEALTHY_SECONDS else starts + 1
        say(f"{reason.text}; it was killed and is started again in {DELAYS[min(starts, len(DELAYS) - 1)]:g} s")


@dataclass(frozen=True)
class Failed:
    """Why a server is to be started again. was_ready: whether it ever answered."""

    text: str
    was_ready: bool = True


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """In a group of its own, which a signal from the terminal does not reach. Raises WatchError."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
        )
    except OSError as error:
        raise WatchError(f"{command[0]} cannot be started ({error.strerror}); check the command after --") from None


def guard(server: Server, process: subprocess.Popen[bytes], pace: Pace) -> Failed | None:
    """Look after a server until it fails; None once this process is told to stop."""
    deadline = time.monotonic() + START_SECONDS
    while (reason := silent(server, pace.timeout)) is not None:
        if process.poll() is not None:
            return Failed(f"the server ended with status {process.returncode} before {MODEL} answered", False)
        if time.monotonic() > deadline:
            return Failed(f"{MODEL} did not answer within {START_SECONDS:g} s ({reason})", False)
        if told_to_stop(pace.every):
            return None
    say("the server answers")
    questioner = Questioner(server, pace)
    while not told_to_stop(pace.every):
        if process.poll() is not None:
            return Failed(f"the server ended with status {process.returncode}")
        if (reason := silent(server, pace.timeout)) is not None:
            return Failed(f"the process of {MODEL} does not answer ({reason})")
        if (reason := questioner.look()) is not None:
            return Failed(f"{MODEL} does not answer a question ({reason})")
    return None


def silent(server: Server, timeout: float) -> str | None:
    """Why the model's process counts as dead; None if it lives, or was taken out on purpose."""
    try:
        server.ping(timeout)
    except ControlError as error:
        if not server.is_taken_out(timeout):
            return str(error)
    return None


class Questioner:
    """Asks a real question now and then, in a thread beside, so that looking goes on meanwhile.

    One that is refused, or comes to nothing in its time, says little about a busy server: what counts is whether
    anybody is answered.
    """

    def __init__(self, server: Server, pace: Pace) -> None:
        self._server, self._pace = server, pace
        self._due = time.monotonic() + pace.ask_every
        self._thread: threading.Thread | None = None
        self._silence: tuple[float, list[float | None]] | None = None
        """Since when, and after what, nobody has been answered, as far as is known."""
        self._failure: str | None = None

    def look(self) -> str | None:
        """Why the engines count as dead; None if they do not."""
        if self._thread is None and time.monotonic() >= self._due:
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()
        elif self._thread is not None and not self._thread.is_alive():
            wait = self._pace.ask_every if self._silence is None else min(self._pace.ask_every, ASK_AGAIN_SECONDS)
            self._thread, self._due = None, time.monotonic() + wait
        return self._failure

    def _ask(self) -> None:
        silence = self._silence or (time.monotonic(), self._answered())
        try:
            self._server.ask(self._pace.ask_timeout)
            self._silence = None
        except ControlError as error:
            answered, now = self._answered(), time.monotonic()
            self._silence = silence if answered == silence[1] else (now, answered)
            if now - self._silence[0] >= self._pace.ask_timeout and not self._server.is_taken_out(self._pace.timeout):
                self._failure = str(error)

    def _answered(self) -> list[float | None]:
        """Of all questions."""
        try:
            return [self._server.metric(name, self._pace.timeout) for name in SIGNS_OF_LIFE]
        except ControlError:
            return []


def told_to_stop(seconds: float) -> bool:
    """Wait, at most so long."""
    return signal.sigtimedwait(SIGNALS, seconds) is not None


def stop(server: Server, process: subprocess.Popen[bytes], wait: float) -> int:
    """Let questions in flight be answered, then end the server -> its exit status. A second signal does not wait."""
    deadline = time.monotonic() + wait
    try:
        server.unload(CALL_SECONDS)
        say(f"{MODEL} takes no more questions")
        while server.in_flight(CALL_SECONDS) and stubs(process.pid) and time.monotonic() < deadline:
            if told_to_stop(0.2):
                break
    except ControlError as error:
        say(f"{MODEL} cannot be drained ({error}); the server is stopped all the same")
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        say("the server did not end and was killed")
        status = 1
    kill(process)
    return status


def kill(process: subprocess.Popen[bytes]) -> None:
    """The server with all that it started, and what they shared in memory, which would stay."""
    shared = shared_memory(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for file in shared:
        file.unlink(missing_ok=True)


def shared_memory(process: int) -> set[Path]:
    """Files in memory that a server shares with its models' processes."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line.split()[-1]) for line in lines if SHARED_MEMORY in line and not line.endswith("(deleted)")}


def stubs(server: int) -> list[int]:
    """Living processes of models that a server started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == server and state not in "ZX" and STUB in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
    return found


def say(text: str) -> None:
    print(f"sgl watch: {text}", file=sys.stderr, flush=True)
