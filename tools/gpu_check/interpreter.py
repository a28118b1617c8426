"""A process in which Triton's kernels are interpreted on the CPU."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context


@contextmanager
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """Submit functions of modules that import the kernels: Triton decides when a kernel is declared."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_interpret) as pool:
        yield pool


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
