"""Arrays of whichever library holds them, NumPy on the host or torch on a GPU: what is computed with them is written
once, in the operations of the Python array API that both have.
"""

from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np
from array_api_compat import device, to_device

__all__ = ["Array", "array_namespace", "concat", "device", "is_host", "pad", "to_host"]
Array = Any
"""np.ndarray or torch.Tensor."""


def array_namespace(*arrays: Array) -> Any:
    """The library of these arrays, with the operations of the Python array API."""
    # array_api_compat wraps NumPy before 2.1, which has not all of them; it imports every part of NumPy to do so, which
    # takes longer than a small model's answer.
    if hasattr(np, "__array_api_version__") and all(is_host(array) for array in arrays):
        return np
    return array_api_compat.array_namespace(*arrays)


def is_host(array: Array) -> bool:
    return isinstance(array, np.ndarray)


def to_host(array: Array) -> np.ndarray:
    """The same numbers for NumPy, which has no bfloat16 and no float16 worth computing in; waits for a GPU."""
    if isinstance(array, np.ndarray):
        return array
    xp = array_namespace(array)
    if xp.isdtype(array.dtype, "real floating") and array.dtype != xp.float64:
        array = xp.astype(array, xp.float32)
    return np.asarray(to_device(array, "cpu"))


def concat(parts: Sequence[Array]) -> Array:
    """Arrays along their first axis; if some are on a GPU, those on the host are copied to it, in their type."""
    on_gpu = [part for part in parts if not is_host(part)]
    if not on_gpu:
        return np.concatenate(parts)
    xp, first = array_namespace(*on_gpu), on_gpu[0]
    return xp.concat([xp.asarray(part, dtype=first.dtype, device=device(first)) for part in parts])


def pad(rows: Sequence[np.ndarray], fill: int = 0, minimum: int = 0) -> np.ndarray:
    """[B] arrays of any lengths -> [B,N], filled at the end; N is at least `minimum`."""
    width = max(minimum, *(len(row) for row in rows))
    padded = np.full((len(rows), width), fill, rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
