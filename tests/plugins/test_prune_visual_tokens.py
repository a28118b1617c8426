"""prune_visual_tokens: ONNX Runtime's lowering against the NumPy contract."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from engine.plugins import prune_visual_tokens
from tests.plugins.run_function import run_function


@pytest.mark.parametrize("keep", [[[0]], [[4]], [[0, 1, 2, 3, 4]], [[1, 3]], [[0, 2, 4], [1, 2, 3]]])
def test_prune(keep: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    batch = len(keep)
    inputs = {
        name: rng.standard_normal((batch, 5, width), dtype=np.float32)
        for name, width in zip(prune_visual_tokens.INPUTS, (6, 2, 2), strict=False)
    }
    inputs["keep_index"] = np.array(keep)
    expected = prune_visual_tokens.reference(*inputs.values())
    for actual, wanted in zip(run_function(prune_visual_tokens.prune_visual_tokens(), inputs), expected, strict=True):
        assert_array_equal(actual, wanted)
