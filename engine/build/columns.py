"""Matrices are worked on some columns at a time."""

from collections.abc import Iterator

COLUMNS_AT_ONCE = 1024


def column_parts(outputs: int) -> Iterator[slice]:
    """Columns that are worked on at once, so that temporaries stay a small part of a matrix."""
    for start in range(0, outputs, COLUMNS_AT_ONCE):
        yield slice(start, start + COLUMNS_AT_ONCE)
