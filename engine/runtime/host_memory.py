"""Host memory that costs nothing before it is written, and nothing again once it is given back."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np

from engine.errors import EngineError, Setting

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that this process may still take without others having to give any back."""
    if sys.platform != "linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read count as used until somebody needs their memory, as the checkpoint's and the engine's.
        cached = int(counts["inactive_file"]) + int(counts["active_file"]) - int(counts["file_mapped"])
        return max(0, min(free, limit - used + max(0, cached)))
    except (OSError, ValueError, KeyError):  # no cgroup of its own, or "max"
        return free


def reserve(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros: address space of their own, whose pages come as they are written. Raises EngineError if there is none."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not size or sys.platform != "linux":
        return np.zeros(shape, dtype)
    # Private: pages that could be shared are not given back one by one.
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise EngineError(
            f"the system has no {size / 2**30:,.2f} GiB of memory for keys and values of all questions; ask fewer "
            "questions at once, give fewer pictures, or ask for fewer ",
            Setting("max_new_tokens"),
        ) from None
    return np.frombuffer(pages, dtype).reshape(shape)


def give_back(part: np.ndarray) -> None:
    """A contiguous part of what was reserved is zeros again; its whole pages are the system's."""
    assert part.flags.c_contiguous, "pages are given back from a start to an end"
    if sys.platform != "linux":
        part[...] = 0
        return
    start, size, page = part.ctypes.data, part.nbytes, mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + size) // page * page
    if first >= last:
        part[...] = 0
        return
    content = part.reshape(-1).view(np.uint8)
    content[: first - start] = content[last - start :] = 0
    if _libc.madvise(first, last - first, mmap.MADV_DONTNEED):
        part[...] = 0  # not reserved memory after all, or locked


if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
