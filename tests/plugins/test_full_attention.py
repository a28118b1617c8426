"""full_attention: ONNX Runtime's lowering against the NumPy contract, the contract against torch."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from engine.plugins import full_attention
from tests.plugins.run_function import run_function
from tests.tolerance import TOLERANCE


def make(batch: int, sequence: int, num_heads: int, dim: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (batch, sequence, num_heads * dim)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name in full_attention.INPUTS}


@pytest.mark.parametrize("sequence", [1, 17, 123, 1025])
@pytest.mark.parametrize(("batch", "num_heads", "dim"), [(1, 1, 8), (3, 3, 5), (2, 4, 64)])
def test_full_attention(batch: int, sequence: int, num_heads: int, dim: int) -> None:
    inputs = make(batch, sequence, num_heads, dim)
    (actual,) = run_function(full_attention.full_attention(num_heads), inputs)
    assert_allclose(actual, full_attention.reference(**inputs, num_heads=num_heads), **TOLERANCE["op"])


def test_reference_is_torch_attention() -> None:
    inputs = make(2, 11, 3, 5)
    q, k, v = (torch.from_numpy(x).double().view(2, 11, 3, 5).transpose(1, 2) for x in inputs.values())
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 11, 15)
    assert_allclose(full_attention.reference(**inputs, num_heads=3), expected, **TOLERANCE["op"])


def test_order_of_tokens_does_not_matter() -> None:
    inputs = make(1, 9, 2, 8)
    order = np.random.default_rng(1).permutation(9)
    function = full_attention.full_attention(2)
    (straight,) = run_function(function, inputs)
    (permuted,) = run_function(function, {name: x[:, order] for name, x in inputs.items()})
    assert_allclose(permuted, straight[:, order], **TOLERANCE["op"])
    assert not np.allclose(permuted, straight)
