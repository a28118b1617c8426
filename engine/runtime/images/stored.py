"""The bytes of a picture where they lie: to copy a large file costs as much as a tenth of decoding it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 1 << 16


@dataclass(frozen=True)
class Stored:
    """Bytes in memory, or in an open file; size: how many."""

    place: bytes | BinaryIO
    size: int

    @classmethod
    def of(cls, data: bytes) -> "Stored":
        return cls(data, len(data))

    def at(self, start: int, stop: int) -> bytes:
        """Those from start to stop that there are."""
        if isinstance(self.place, bytes):
            return self.place[start:stop]
        return os.pread(self.place.fileno(), max(0, stop - start), start)

    def whole(self) -> bytes:
        return self.place if isinstance(self.place, bytes) else b"".join(self.blocks(0))

    def blocks(self, start: int) -> Iterator[bytes]:
        """From start to the end."""
        return (self.at(place, min(place + BLOCK, self.size)) for place in range(start, self.size, BLOCK))


class Joined:
    """A file that begins with some bytes, goes on with a part of a stored one, and ends with others."""

    def __init__(self, head: bytes, stored: Stored, start: int, stop: int, tail: bytes = b"") -> None:
        self._head, self._stored, self._start, self._tail = head, stored, start, tail
        self._body = len(head) + max(0, stop - start)
        self._place = 0

    def read(self, count: int = -1) -> bytes:
        end = self._body + len(self._tail)
        stop = end if count < 0 else min(end, self._place + count)
        found = self._part(self._place, stop)
        while self._place + len(found) < stop and (more := self._part(self._place + len(found), stop)):
            found += more
        self._place += len(found)
        return found

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._body + len(self._tail)}[whence]
        self._place = max(0, origin + place)
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        """Whoever opened the stored file closes it."""

    def _part(self, start: int, stop: int) -> bytes:
        """From start on, as much as lies together."""
        if start < len(self._head):
            return self._head[start:stop]
        if start < self._body:
            shift = self._start - len(self._head)
            return self._stored.at(start + shift, min(stop, self._body) + shift)
        return self._tail[start - self._body : stop - self._body]
