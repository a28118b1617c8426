"""What TensorRT would compute: its graphs run by ONNX's own reference, its fused attention written out in NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import InlinePass

from engine.plugins.function import TENSORRT_DOMAIN
from engine.runtime.executor import HostBuffers


class TRT_Attention(OpRun):
    """Unscaled causal attention over the first kv_length keys, whose last one belongs to the last query row."""

    op_domain = TENSORRT_DOMAIN

    def _run(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        mask: None,
        query_length: None,
        kv_length: np.ndarray,
        causal_kind: str | None = None,
    ) -> tuple[np.ndarray]:
        """[B,H,S,D], [B,Hkv,T,D] x2, [B] -> [B,H,S,D]"""
        assert (mask, query_length, causal_kind) == (None, None, "lower_right")
        group, rows = query.shape[1] // key.shape[1], query.shape[2]
        keys, values = (np.repeat(x, group, axis=1).astype(np.float64) for x in (key, value))
        position = kv_length[:, None] - rows + np.arange(rows)
        assert (position >= 0).all(), "no row is padding"
        visible = np.arange(keys.shape[2]) <= position[:, None, :, None]
        logits = np.where(visible, query.astype(np.float64) @ keys.swapaxes(2, 3), -np.inf)
        exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return ((exponent / exponent.sum(axis=-1, keepdims=True) @ values).astype(query.dtype),)


class GatherElements(OpRun):
    """ONNX's own refuses more than 64 rows."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis=axis),)


class ReferenceExecutor(HostBuffers):
    """A graph as an `Executor`; buffers bound as input and as output are updated in place."""

    def __init__(self, model: ir.Model, plugins: Sequence[type[OpRun]] = ()) -> None:
        InlinePass()(model)
        self._evaluator: Any = ReferenceEvaluator(ir.to_proto(model), new_ops=[TRT_Attention, GatherElements, *plugins])
        self._inputs: dict[str, np.ndarray] = {}
        self._outputs: dict[str, np.ndarray] = {}

    def bind_input(self, name: str, array: np.ndarray) -> None:
        self._inputs[name] = array

    def bind_output(self, name: str, array: np.ndarray) -> None:
        self._outputs[name] = array

    def run(self) -> None:
        results = self._evaluator.run(list(self._outputs), self._inputs)
        for array, result in zip(self._outputs.values(), results, strict=True):
            array[...] = result
