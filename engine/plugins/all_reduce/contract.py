"""Contract of `sgl::all_reduce` and its reference in NumPy."""

from collections.abc import Sequence

import numpy as np

NAME = "all_reduce"
INPUTS = ("partial",)


def reference(partial: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One array of the same shape per rank -> what every rank gets: their sum, the same on all."""
    total = np.sum(np.stack(partial).astype(np.float64), axis=0).astype(partial[0].dtype)
    return [total.copy() for _ in partial]
