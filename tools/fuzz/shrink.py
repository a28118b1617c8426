"""Smaller cases than one that fails."""

from collections.abc import Iterator, Sequence
from typing import Any

from tools.fuzz.kind import Case


def smaller(case: Case) -> Iterator[Case]:
    """Cases with something cut out, the largest cuts first."""
    if isinstance(case, bytes | str | list):
        yield from _without_parts(case)
    if isinstance(case, list):
        for index, item in enumerate(case):
            for less in smaller(item):
                yield [*case[:index], less, *case[index + 1 :]]
    if isinstance(case, dict):
        for name in case:
            yield {other: value for other, value in case.items() if other != name}
        for name, value in case.items():
            for less in smaller(value):
                yield case | {name: less}
    if isinstance(case, int) and not isinstance(case, bool) and abs(case) > 1:
        yield int(case / 2) if abs(case) < 1 << 60 else case >> 1


def _without_parts(case: Sequence[Any]) -> Iterator[Any]:
    length = len(case)
    while length > 0:
        for start in range(0, len(case), length):
            yield case[:start] + case[start + length :]  # type: ignore[operator]
        length //= 2
