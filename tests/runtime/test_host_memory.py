"""Memory for keys and values that nobody has yet written."""

import numpy as np
import pytest

from engine.errors import EngineError
from engine.runtime.host_memory import reserve


@pytest.mark.parametrize("size", [1 << 50, 1 << 61])
def test_more_than_there_can_be_is_refused_in_a_sentence(size: int) -> None:
    with pytest.raises(EngineError, match=r"has no [\d,.]+ GiB of memory for keys and values .*; ask fewer questions"):
        reserve((size,), np.dtype(np.float32))
