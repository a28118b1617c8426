"""Weights stream: one parameter at a time from the checkpoint's tensors to the part that a rank owns."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from engine.build.checkpoint import Checkpoint
from engine.build.layers import Weight
from engine.errors import CheckpointError
from engine.families.base import Source

RowRanges = tuple[tuple[int, int], ...]


def parameters(model: ir.Model) -> Iterator[tuple[str, Weight]]:
    """The graph's parameters by name, in the order of the graph."""
    for name, value in model.graph.initializers.items():
        if isinstance(value, Weight):
            yield name, value


class WeightReader:
    """Reads parameters of one graph from one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, sources: Mapping[str, Source]) -> None:
        self._checkpoint, self._sources = checkpoint, sources

    def check(self, model: ir.Model) -> None:
        """`check_shapes` of a graph's parameters."""
        self.check_shapes({name: weight.stored for name, weight in parameters(model)})

    def check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Every parameter has a tensor of the right shape, and fused tensors are used up entirely, before any is read.

        Raises CheckpointError naming the first tensor that does not fit.
        """
        used: dict[str, list[int]] = {}
        for name, stored in shapes.items():
            source = self._sources[name]
            if source.rows is None:
                rows, *rest = stored
                for tensor in source.tensors():
                    self._checkpoint.expect(tensor, (rows // len(source.tensors()), *rest))
                continue
            rows = sum(stop - start for start, stop in source.rows)
            assert rows == stored[0], f"{name}: the family names {rows} rows of {stored[0]}"
            # A fused tensor's shape: the rows of all parameters that it holds.
            shape = used.setdefault(source.tensor, [0, *stored[1:]])
            shape[0] += rows
        for tensor, shape in used.items():
            self._checkpoint.expect(tensor, shape)

    def read(self, name: str, weight: Weight) -> np.ndarray:
        """The parameter's data, float32, of the shape that the graph declares."""
        source, part = self._sources[name], weight.part
        if source.joined:
            assert part.rows is part.columns is None, f"{name}: ranks split no parameter of several tensors"
            data = np.concatenate([self._checkpoint.read(tensor) for tensor in source.tensors()])
        else:
            rows: RowRanges = source.rows if source.rows is not None else ((0, weight.stored[0]),)
            if part.rows is not None:
                rows = _select(rows, part.rows)
            columns = (part.columns.start, part.columns.stop) if part.columns is not None else None
            data = self._checkpoint.read(source.tensor, rows, columns)
        if part.transpose:
            data = data.T
        # One copy that casts and lays out at once: the peak is the tensor as stored and as wanted.
        result = np.zeros(part.shape(weight.stored), np.float32)
        where = tuple(slice(0, size) for size in data.shape)
        result[where] = data
        if not np.isfinite(result).all():
            raise CheckpointError(f"{source.tensor} holds values that are not finite; download the checkpoint again")
        return result


def _select(rows: RowRanges, wanted: range) -> RowRanges:
    """The part `wanted` of the concatenated `rows`; what lies past their end is left out."""
    selected, offset = [], 0
    for start, stop in rows:
        low = max(wanted.start - offset, 0)
        high = min(wanted.stop - offset, stop - start)
        if low < high:
            selected.append((start + low, start + high))
        offset += stop - start
    return tuple(selected)
