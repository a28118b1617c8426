"""A directory for the files of one case."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MEMORY = Path("/dev/shm")
"""Files there cost no disk, which thousands of cases would wait for."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Gone when the case is over."""
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as place:
        yield Path(place)
