"""The questions' file, read once from its front: where each line lies, and what is in it when it is wanted."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from engine.batch.journal import read_at
from engine.errors import RequestError

MOST_BYTES = 64_000_000
"""Of a line; one that is longer is answered with an error."""
READ_BYTES = 1 << 20


class Line(NamedTuple):
    """place: from 0, blank ones included. length: without the line break. picture: the same for questions about the
    same one; None of one about none."""

    place: int
    offset: int
    length: int
    picture: int | None = None


@dataclass(frozen=True)
class Mark:
    """How far a file was read, and what was in it."""

    lines: int = 0
    bytes: int = 0
    digest: str = ""


class Source(Protocol):
    """Questions, a line each, read once from their front."""

    def read(self) -> Line | None:
        """The next one; None at the end."""

    def content(self, line: Line) -> bytes: ...

    def mark(self) -> Mark:
        """How far they are read now."""

    def left(self) -> int:
        """About how many are not read yet."""


class Lines:
    """A `Source`: an open file of questions."""

    def __init__(self, path: Path) -> None:
        """Raises RequestError."""
        self.path = path
        try:
            if path.exists() and not path.is_file():
                raise RequestError(f"{path} is no ordinary file, which could be read again; write the questions to one")
            self._file = path.open("rb", buffering=READ_BYTES)
        except FileNotFoundError:
            raise RequestError(f"{path} does not exist; give a file of questions, a line of JSON each") from None
        except OSError as error:
            raise RequestError(f"{path} cannot be read ({error.strerror}); give a file of questions") from None
        self.size = os.fstat(self._file.fileno()).st_size
        self._lines = self.bytes = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def read(self) -> Line | None:
        """The next one; None at the end."""
        start, length = self.bytes, 0
        while part := self._file.readline(READ_BYTES):
            self._hash.update(part)
            self.bytes += len(part)
            is_last = part.endswith(b"\n")
            length += len(part) - is_last
            if is_last:
                break
        if self.bytes == start:
            return None
        self._lines += 1
        return Line(self._lines - 1, start, length)

    def content(self, line: Line) -> bytes:
        """Of one that is too long, so much that it shows."""
        return read_at(self._file.fileno(), line.offset, min(line.length, MOST_BYTES + 1))

    def mark(self) -> Mark:
        """How far it is read now."""
        return Mark(self._lines, self.bytes, self._hash.hexdigest())

    def left(self) -> int:
        """About how many are not read yet, as if they were as long as those that are."""
        left = max(0, self.size - self.bytes)
        return -(-left * max(1, self._lines) // max(1, self.bytes)) if left else 0

    def check(self, mark: Mark, journal: Path) -> None:
        """Raises RequestError where the file no longer begins as it did then."""
        digest, left = hashlib.blake2b(digest_size=16), mark.bytes
        with self.path.open("rb") as file:
            while left and (part := file.read(min(READ_BYTES, left))):
                digest.update(part)
                left -= len(part)
        if mark.lines and (left or digest.hexdigest() != mark.digest):
            raise RequestError(
                f"{self.path} is not what was answered before: its first {mark.lines} lines have changed; write to "
                f"another file, or remove {journal} and the answers to begin anew"
            )

    def close(self) -> None:
        self._file.close()
