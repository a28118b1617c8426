"""The lowerings for TensorRT against the NumPy contracts, its fused attention replaced by one in NumPy."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx.reference.op_run import OpRun

from engine.build.graph import IR_VERSION
from engine.plugins import cached_attention, full_attention, prune_visual_tokens, received_attention
from engine.plugins.function import DOMAIN
from engine.plugins.received_attention import tensorrt as received_attention_tensorrt
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from tests.plugins.test_attention import CALLS, HEADS, Call, make, make_received
from tests.plugins.test_full_attention import make as make_full
from tests.reference_executor import ReferenceExecutor
from tests.tolerance import TOLERANCE

UNPADDED = {name: call for name, call in CALLS.items() if "ragged prefill" not in name} | {
    "each request by as many rows": (3, 21, [0, 18, 7], [3, 21, 10])
}
"""TensorRT's attention knows no padding among the query rows, so prompts of different lengths take turns."""


def run(
    function: ir.Function,
    inputs: dict[str, np.ndarray],
    outputs: list[np.ndarray],
    plugins: Sequence[type[OpRun]] = (),
) -> list[np.ndarray]:
    """outputs: as large as what comes out, and overwritten."""
    values = [ir.val(name, dtype=ir.DataType.from_numpy(x.dtype), shape=list(x.shape)) for name, x in inputs.items()]
    node = ir.node(function.name, values, domain=DOMAIN, num_outputs=len(function.outputs))
    for index, output in enumerate(node.outputs):
        output.name, output.dtype = f"output_{index}", ir.DataType.FLOAT
    graph = ir.Graph(values, node.outputs, nodes=[node], name="one_op", opset_imports={**TENSORRT_RTX.opset, DOMAIN: 1})
    executor = ReferenceExecutor(ir.Model(graph, ir_version=IR_VERSION, functions=[function]), plugins)
    for name, array in inputs.items():
        executor.bind_input(name, array)
    for index, array in enumerate(outputs):
        executor.bind_output(f"output_{index}", array)
    executor.run()
    return outputs


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", UNPADDED.values(), ids=UNPADDED.keys())
def test_cached_attention(heads: tuple, call: Call) -> None:
    inputs = make(heads, call)
    expected = cached_attention.reference(*inputs.values(), heads[0], heads[1])
    actual = run(TENSORRT_RTX.cached_attention(*heads), inputs, [np.empty_like(array) for array in expected])
    for ours, theirs in zip(actual, expected, strict=True):
        assert_allclose(ours, theirs, **TOLERANCE["op"])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("cache", "rows", "columns"), [(1, 1, 1), (17, 1, 5), (41, 3, 7), (123, 33, 100)])
def test_received_attention(heads: tuple, batch: int, cache: int, rows: int, columns: int) -> None:
    inputs = make_received(heads, cache, rows, columns, batch)
    expected = received_attention.reference(*inputs.values(), heads[0], heads[1])
    (actual,) = run(received_attention_tensorrt.received_attention(*heads), inputs, [np.empty_like(expected)])
    assert_allclose(actual, expected, **TOLERANCE["op"])


@pytest.mark.parametrize(("batch", "num_heads", "dim"), [(1, 1, 8), (3, 3, 5), (2, 4, 64)])
def test_full_attention(batch: int, num_heads: int, dim: int) -> None:
    inputs = make_full(batch, 17, num_heads, dim)
    expected = full_attention.reference(**inputs, num_heads=num_heads)
    (actual,) = run(TENSORRT_RTX.full_attention(num_heads), inputs, [np.empty_like(expected)])
    assert_allclose(actual, expected, **TOLERANCE["op"])


@pytest.mark.parametrize("keep", [[[4]], [[0, 2, 4], [1, 2, 3]]])
def test_prune_visual_tokens(keep: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    widths = zip(prune_visual_tokens.INPUTS, (6, 2, 2), strict=False)
    inputs = {name: rng.standard_normal((len(keep), 5, width), dtype=np.float32) for name, width in widths}
    inputs["keep_index"] = np.array(keep)
    expected = prune_visual_tokens.reference(*inputs.values())
    actual = run(TENSORRT_RTX.prune_visual_tokens(), inputs, [np.empty_like(array) for array in expected])
    for ours, theirs in zip(actual, expected, strict=True):
        assert_array_equal(ours, theirs)
