"""The questions' file, read once from its front: where each line lies, and what is in it when it is wanted."""

import codecs
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from engine.batch.journal import read_at
from engine.errors import RequestError

MOST_BYTES = 64_000_000
"""Of a line; one that is longer is answered with an error."""
READ_BYTES = 1 << 20
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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
        self._lines = self.bytes = 0
        self._is_over = False
        self._hash = hashlib.blake2b(digest_size=16)
        try:
            with self._reading():
                if path.exists() and not path.is_file():
                    raise RequestError(
                        f"{path} is no ordinary file, which could be read again; write the questions to one"
                    )
                self._file = path.open("rb", buffering=READ_BYTES)
                self.size = os.fstat(self._file.fileno()).st_size
                begin = self._at(0, 2)
        except FileNotFoundError:
            raise RequestError(f"{path} does not exist; give a file of questions, a line of JSON each") from None
        if begin in UTF_16:
            raise RequestError(f"{path} is UTF-16, and UTF-8 is read; convert it, for example with iconv -t UTF-8")

    def read(self) -> Line | None:
        """The next one; None at the end, which is the first line without a break: somebody may be writing there. Raises
        RequestError."""
        start, length = self.bytes, 0
        with self._reading():
            while not self._is_over and (part := self._file.readline(READ_BYTES)):
                self._hash.update(part)
                self.bytes += len(part)
                is_last = part.endswith(b"\n")
                length += len(part) - is_last
                if is_last:
                    break
            else:
                self._is_over = True
        if self.bytes == start:
            return None
        self._lines += 1
        return Line(self._lines - 1, start, length)

    def content(self, line: Line) -> bytes:
        """Of one that is too long, so much that it shows; without a byte order mark. Raises RequestError."""
        length = min(line.length, MOST_BYTES + 1)
        content = self._at(line.offset, length)
        if len(content) < length:
            raise RequestError(
                f"{self.path} became shorter while it was read: line {line.place + 1} is gone; what was answered is "
                "kept: leave the file as it was, and the same command continues"
            )
        return content if line.place else content.removeprefix(codecs.BOM_UTF8)

    def mark(self) -> Mark:
        """How far it is read now."""
        return Mark(self._lines, self.bytes, self._hash.hexdigest())

    def left(self) -> int:
        """About how many are not read yet, as if they were as long as those that are."""
        left = max(0, self.size - self.bytes)
        return -(-left * max(1, self._lines) // max(1, self.bytes)) if left else 0

    def check(self, mark: Mark, output: Path) -> None:
        """Raises RequestError where the file no longer begins as it did then."""
        digest, place, last = hashlib.blake2b(digest_size=16), 0, b"\n"
        while place < mark.bytes and (part := self._at(place, min(READ_BYTES, mark.bytes - place))):
            digest.update(part)
            place, last = place + len(part), part[-1:]
        behind = self._at(place, 1)
        begin = f"write to another file, or remove {output} and its journal to begin anew"
        if mark.lines and (place < mark.bytes or digest.hexdigest() != mark.digest):
            raise RequestError(
                f"{self.path} is not what was answered before: its first {mark.lines} lines have changed; {begin}"
            )
        if last != b"\n" and behind not in (b"", b"\n"):
            raise RequestError(
                f"{self.path} is not what was answered before: its line {mark.lines} had no end and goes on now; begin "
                f"a new line there, {begin}"
            )

    def close(self) -> None:
        self._file.close()

    def _at(self, offset: int, length: int) -> bytes:
        """Raises RequestError."""
        with self._reading():
            return read_at(self._file.fileno(), offset, length)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises RequestError, and FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RequestError(f"{self.path} cannot be read ({error.strerror}); make it readable") from None
