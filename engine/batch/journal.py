"""A file that is only ever appended to, of records that are whole or not there: what a crash cut short is dropped.

A record is a line: its CRC-32, a letter for its kind, its content.
"""

import errno
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

CRC_BYTES = 8
CONTENT = CRC_BYTES + 3
"""Where a record's content begins: behind the CRC, a space, the kind, a space."""


class Record(NamedTuple):
    """offset: of the content in the file."""

    kind: bytes
    content: bytes
    offset: int


class Tail:
    """A file that is written at its end, all of a piece or not at all."""

    def __init__(self, file: int, size: int) -> None:
        """file: a descriptor. size: where the file ends; what is behind is cut off."""
        self.file, self.size = file, size
        os.ftruncate(file, size)

    def append(self, data: bytes) -> None:
        """Raises OSError, and then nothing was written."""
        left, place = memoryview(data), self.size
        try:
            while left:
                count = os.pwrite(self.file, left, place)
                left, place = left[count:], place + count
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.file, self.size)
            raise
        self.size = place

    def sync(self) -> None:
        """Wait until it is on the disk."""
        os.fsync(self.file)


def read_at(file: int, offset: int, length: int) -> bytes:
    """Fewer at the file's end."""
    parts = []
    while length and (part := os.pread(file, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def encode(kind: bytes, content: bytes) -> bytes:
    """content: has no line break."""
    body = kind + b" " + content
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> tuple[bytes, bytes] | None:
    """Kind and content; None of a line that is not whole."""
    body = line[CRC_BYTES + 1 : -1]
    if not line.endswith(b"\n") or len(line) <= CONTENT or line[: CRC_BYTES + 1] != b"%08x " % zlib.crc32(body):
        return None
    return body[:1], body[2:]


class Journal:
    """An open one."""

    def __init__(self, path: Path) -> None:
        """Of an existing file; `records` is to be read before anything is appended."""
        self._path = path
        self._end: int | None = None
        self._tail: Tail | None = None
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # of a pipe, it would wait
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            os.close(self._file)
            raise OSError(errno.EINVAL, "it is no ordinary file")

    def records(self) -> Iterator[Record]:
        """From the first to the last that is whole; what is behind that is cut off when something is appended, and
        not before: what cannot be understood stays as it is."""
        offset = 0
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in file:
                found = decode(line)
                if found is None:
                    break
                yield Record(*found, offset + CONTENT)
                offset += len(line)
        self._end = offset

    @property
    def size(self) -> int:
        return self._open().size

    def append(self, kind: bytes, content: bytes) -> int:
        """-> the content's offset. Raises OSError."""
        tail = self._open()
        offset = tail.size + CONTENT
        tail.append(encode(kind, content))
        return offset

    def read(self, offset: int, length: int) -> bytes:
        return read_at(self._file, offset, length)

    def sync(self) -> None:
        self._open().sync()

    def replace(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """With others, at once. Raises OSError, and then it is as it was."""
        before = self._open()
        file, size = _write(self._path, records)
        self._file, self._tail = file, Tail(file, size)
        os.close(before.file)

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> Tail:
        if self._tail is None:
            assert self._end is not None
            self._tail = Tail(self._file, self._end)
        return self._tail


def create(path: Path, records: Iterable[tuple[bytes, bytes]]) -> None:
    """All of it or nothing. Raises OSError."""
    os.close(_write(path, records)[0])


def _write(path: Path, records: Iterable[tuple[bytes, bytes]]) -> tuple[int, int]:
    """-> a descriptor, and the file's size."""
    part = path.with_name(f"{path.name}.part")
    try:
        file: BinaryIO
        with part.open("wb") as file:
            for kind, content in records:
                file.write(encode(kind, content))
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(part, os.O_RDWR)
        try:
            size = os.fstat(descriptor).st_size
            os.replace(part, path)
        except OSError:
            os.close(descriptor)
            raise
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return descriptor, size


def sync_directory(path: Path) -> None:
    """So that a file that was put there is found after the machine was lost, where the file system can."""
    with suppress(OSError):
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
