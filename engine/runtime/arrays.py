"""Arrays of whichever library holds them, NumPy on the host or torch on a GPU: what is computed with them is written
once, in the operations of the Python array API that both have.
"""

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device

__all__ = ["Array", "array_namespace", "device", "is_host", "to_host"]
Array = Any
"""np.ndarray or torch.Tensor."""


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
