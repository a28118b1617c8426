"""Which lines are answered: a bit for each."""

from collections.abc import Sequence

import numpy as np


class LineSet:
    """Places of lines, from 0."""

    def __init__(self, ranges: Sequence[int] = ()) -> None:
        """ranges: first and behind the last of each row of lines."""
        bits = np.zeros(max(ranges, default=0), np.uint8)
        for first, behind in zip(ranges[::2], ranges[1::2], strict=True):
            bits[first:behind] = 1
        self._bits = bytearray(np.packbits(bits, bitorder="little").tobytes())

    def __contains__(self, place: int) -> bool:
        return place >> 3 < len(self._bits) and bool(self._bits[place >> 3] >> (place & 7) & 1)

    def is_empty(self) -> bool:
        return not any(self._bits)

    def add(self, place: int) -> None:
        if (missing := (place >> 3) + 1 - len(self._bits)) > 0:
            self._bits.extend(bytes(missing))
        self._bits[place >> 3] |= 1 << (place & 7)

    def ranges(self) -> list[int]:
        bits = np.unpackbits(np.frombuffer(bytes(self._bits), np.uint8), bitorder="little")
        edges: list[int] = np.flatnonzero(np.diff(bits.view(np.int8), prepend=0, append=0)).tolist()
        return edges
