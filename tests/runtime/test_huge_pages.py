"""Memory that an engine allocates while it is loaded is moved to huge pages, and stays what it was."""

import mmap
import platform
import re
from pathlib import Path

import numpy as np
import pytest

from engine.runtime.huge_pages import HUGE_PAGE, _without, huge_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_content_is_kept() -> None:
    rng = np.random.default_rng(0)
    with huge_pages():
        memory = mmap.mmap(-1, 4 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, np.uint8)
        array[:] = expected = rng.integers(0, 256, len(array), np.uint8)
    np.testing.assert_array_equal(array, expected)


KERNEL = tuple(int(number) for number in platform.release().split(".")[:2])


@pytest.mark.skipif(
    KERNEL < (6, 1) or not ENABLED.exists() or "[never]" in ENABLED.read_text(),
    reason="this kernel gives no huge pages to those who ask",
)
def test_pages_are_huge() -> None:
    with huge_pages():
        memory = mmap.mmap(-1, 4 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, np.uint8)
        array[:] = 1
    assert huge_kilobytes(array.ctypes.data) >= 3 * HUGE_PAGE // 1024, "all but what is not aligned"


def huge_kilobytes(address: int) -> int:
    """Of the mapping that holds the address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError("no mapping holds the address")


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ([], [(10, 20), (30, 40)]),
        ([(0, 5), (50, 60)], [(10, 20), (30, 40)]),
        ([(10, 20)], [(30, 40)]),
        ([(12, 15)], [(10, 12), (15, 20), (30, 40)]),
        ([(12, 15), (16, 18)], [(10, 12), (15, 16), (18, 20), (30, 40)]),
        ([(15, 35)], [(10, 15), (35, 40)]),
        ([(0, 50)], []),
    ],
)
def test_what_was_there_before_is_left_alone(removed: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert list(_without(iter([(10, 20), (30, 40)]), removed)) == expected
