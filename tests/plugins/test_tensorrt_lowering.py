"""The lowerings for full TensorRT, with our plugins, against the NumPy contracts."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from numpy.testing import assert_allclose, assert_array_equal
from onnx.reference.op_run import OpRun

from engine.plugins import prune_visual_tokens, visual_attention
from engine.plugins.targets.tensorrt import TENSORRT
from tests.plugins.tensorrt_stub import missing
from tests.plugins.test_tensorrt_rtx import run
from tests.tolerance import TOLERANCE
from tools.gpu_check.parity import ATTENTION_SHAPES, attention_inputs, valid_rows

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

from tests.plugins.simulated_tensorrt import plugin_ops


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[type[OpRun]]]:
    with plugin_ops(tmp_path_factory.mktemp("tensorrt")) as operators:
        yield operators


@pytest.mark.parametrize(
    "name", ["ragged prefill", "appended rows", "ragged appends", "ragged decode, splits without keys"]
)
def test_visual_attention(plugins: list[type[OpRun]], name: str) -> None:
    # The same heads, so that each kernel is compiled once.
    shape = replace(ATTENTION_SHAPES[name], num_heads=8, num_kv_heads=2, head_dim=64)
    inputs = attention_inputs(shape)
    expected = visual_attention.reference(*inputs.values(), shape.num_heads, shape.num_kv_heads)
    function = TENSORRT.visual_attention(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    output, key, value, received = run(function, inputs, [np.empty_like(array) for array in expected], plugins)
    valid = valid_rows(inputs)
    assert_allclose(output[valid], expected[0][valid], **TOLERANCE["op"])
    for b, length in enumerate(shape.lengths):
        assert_array_equal(key[b, :, :length], expected[1][b, :, :length])
        assert_array_equal(value[b, :, :length], expected[2][b, :, :length])
    assert_allclose(received, expected[3], **TOLERANCE["op"])


def test_prune_visual_tokens(plugins: list[type[OpRun]]) -> None:
    rng = np.random.default_rng(0)
    widths = zip(prune_visual_tokens.INPUTS, (48, 4, 4), strict=False)
    inputs = {name: rng.standard_normal((2, 9, width), dtype=np.float32) for name, width in widths}
    inputs["keep_index"] = np.array([[0, 2, 4, 8], [1, 2, 3, 5]])
    expected = prune_visual_tokens.reference(*inputs.values())
    outputs = [np.empty_like(array) for array in expected]
    for ours, theirs in zip(run(TENSORRT.prune_visual_tokens(), inputs, outputs, plugins), expected, strict=True):
        assert_array_equal(ours, theirs)
