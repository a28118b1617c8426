"""Large pages for what an engine keeps in memory: fewer address translations while weights stream past.

Linux gives huge pages to those who ask (`transparent_hugepage/enabled` is `madvise` in most distributions), and ONNX
Runtime does not ask for its packed matrices. Elsewhere, and where the kernel declines, nothing happens.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_PAGE = 2 << 20
MADV_COLLAPSE = 25
"""Make huge pages of what is there already, now; Linux 6.1 and newer."""
MAPS = Path("/proc/self/maps")


@contextmanager
def huge_pages() -> Iterator[None]:
    """What is allocated inside and still there at the end lies in huge pages afterwards."""
    if sys.platform != "linux":
        yield
        return
    before = list(_anonymous())
    yield
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, stop in _without(_anonymous(), before):
        start, stop = -(-start // HUGE_PAGE) * HUGE_PAGE, stop // HUGE_PAGE * HUGE_PAGE
        if start < stop:
            for advice in (mmap.MADV_HUGEPAGE, MADV_COLLAPSE):
                advise(start, stop - start, advice)


def _anonymous() -> Iterator[tuple[int, int]]:
    """Address ranges of private memory that no file backs, ascending."""
    for line in MAPS.read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split()
        if permissions == "rw-p" and inode == "0" and (not name or name == ["[heap]"]):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            yield start, stop


def _without(ranges: Iterator[tuple[int, int]], removed: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of `ranges` that lie in none of `removed`; both ascending."""
    for start, stop in ranges:
        for from_, to in removed:
            if from_ < stop and to > start:
                if start < from_:
                    yield start, from_
                start = max(start, to)
        if start < stop:
            yield start, stop
