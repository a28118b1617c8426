"""Programs of this package that decode what strangers send, in processes of their own: both ends of their pipes."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from PIL import Image

from engine.errors import EngineError
from engine.runtime.images.colours import strips

PIPE = 1 << 20
"""Bytes that a pipe holds: fewer changes between the two processes than with the usual 64 KiB."""

END_SECONDS = 5.0
"""Until a process that closed its output has ended."""


def start(
    program: str, arguments: Iterable[object], modules: Iterable[str], files: Iterable[int] = ()
) -> "subprocess.Popen[bytes]":
    """A module of Python, run with what it says on standard output as replies. Raises EngineError.

    modules: the files of those that it imports from elsewhere. files: open ones that it is given under their numbers.
    """
    places = dict.fromkeys(str(Path(module).parents[1]) for module in modules)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OPENBLAS_NUM_THREADS": "1"}
    # In a server that embeds Python, `sys.executable` is the server.
    python = shutil.which("python3", path=f"{sys.prefix}/bin") or sys.executable
    try:
        return subprocess.Popen(
            [python, "-P", "-m", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=PIPE,
            env=environment,
            start_new_session=True,
            pass_fds=tuple(files),
        )
    except OSError as error:
        raise EngineError(
            f"a process that decodes pictures cannot be started ({error.strerror}); see that {python} runs"
        ) from None


def status_of(process: "subprocess.Popen[bytes]") -> int:
    """Of one that has ended, or should have."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # of what could not be sent any more
            cast(BinaryIO, pipe).close()


def receive_pixels(replies: BinaryIO, width: int, height: int) -> Image.Image:
    """[H,W,3] from a pipe. Raises ValueError where it ends before."""
    image = Image.new("RGB", (width, height))
    for top, bottom in strips(width, height):
        size = width, bottom - top
        image.paste(Image.frombytes("RGB", size, replies.read(3 * size[0] * size[1])), (0, top))
    return image


def send_pixels(replies: BinaryIO, image: Image.Image) -> None:
    """[H,W,3] into a pipe."""
    for top, bottom in strips(*image.size):
        replies.write(image.crop((0, top, image.width, bottom)).tobytes())
    replies.flush()


def take_standard_output() -> BinaryIO:
    """Where replies go: whatever a library prints does not come between them."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def limit(what: int, soft: int) -> None:
    """The hard limit stays, as a soft one of time is raised again."""
    hard = resource.getrlimit(what)[1]
    with suppress(ValueError, OSError):  # a smaller hard limit of the machine's
        resource.setrlimit(what, (soft, hard))
