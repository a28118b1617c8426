"""Where a picture comes from: a file, its bytes, what a command line names."""

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from engine.errors import ImageError
from engine.runtime.images.limits import MAX_BYTES
from engine.runtime.images.stored import Stored
from engine.runtime.words import short

ImageSource = Path | str | bytes | Image.Image | np.ndarray
"""A file, the bytes of one, a picture that is open already, or numbers: uint8, [H,W] or [H,W,C] with 1, 3 or 4
channels."""

STDIN = "-"
NONBLOCK = getattr(os, "O_NONBLOCK", 0)
PIPE_SECONDS = 10.0
"""For all that a pipe in the place of a file says."""
READ_BYTES = 1 << 20


def read_source(text: str, allow_http: bool) -> ImageSource:
    """What `text` names: a path, in which ~ is the home directory, a URL, or - for standard input. Raises ImageError.

    allow_http: whether http and https URLs are fetched, too.
    """
    if text == STDIN:
        return _stdin()
    scheme = text.partition(":")[0].lower()
    if scheme in ("data", "http", "https"):
        from engine.runtime.image_url import EVERY_HOST, NO_HOST, fetch  # what speaks HTTP takes a while to import

        return fetch(text, EVERY_HOST if allow_http else NO_HOST)
    try:
        return Path(unquote(urlsplit(text).path) if scheme == "file" else text).expanduser()
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"{short(text)} is no path ({error}); write it out") from None


@contextmanager
def stored_file(path: Path, name: str) -> Iterator[Stored]:
    """The bytes of a file, unless they are too many. Raises ImageError."""
    try:
        # Opening a pipe would wait until somebody writes.
        file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise ImageError(_missing(name)) from None
    except (OSError, ValueError) as error:
        raise ImageError(_unreadable(name, error)) from None
    with file:
        try:
            status = os.fstat(file.fileno())
            # What is no ordinary file, such as a pipe, can be read once only.
            ordinary = stat.S_ISREG(status.st_mode)
            stored = Stored(file, status.st_size) if ordinary else Stored.of(_read_pipe(file.fileno()))
        except OSError as error:
            raise ImageError(_unreadable(name, error)) from None
        yield stored


def _read_pipe(file: int) -> bytes:
    """All that comes, within PIPE_SECONDS and as much as a picture may have. Raises OSError."""
    content, end = bytearray(), time.monotonic() + PIPE_SECONDS
    while len(content) <= MAX_BYTES:
        if not select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"nothing more came within {PIPE_SECONDS:g} s")
        part = os.read(file, READ_BYTES)
        if not part:
            break
        content += part
    return bytes(content)


def _stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ImageError(f"{STDIN} is the picture on standard input, and there is none; send one with a pipe or <")
    return sys.stdin.buffer.read(MAX_BYTES + 1)  # one more is refused when it is opened


def _missing(name: str) -> str:
    if name.partition(":")[0].lower() in ("data", "http", "https", "file"):
        return f"{name} is a URL, and a path was expected; fetch it first (engine.runtime.image_url.fetch)"
    return f"{name} does not exist; give the path of a picture"


def _unreadable(name: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else error
    return f"{name} cannot be read ({reason}); give the path of a picture"
