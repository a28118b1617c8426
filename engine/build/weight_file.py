"""One file of weights beside an ONNX graph, written tensor by tensor."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir

LARGE_BYTES = 64 * 1024
LARGE_ALIGNMENT = 4096
"""A page: ONNX Runtime maps large tensors from the file instead of copying them."""
SMALL_ALIGNMENT = 64


class WeightFile:
    """Streams tensors into `path`; a graph that uses them is saved in the same directory. Holds no tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def add(self, name: str, array: np.ndarray) -> ir.ExternalTensor:
        """Append any dtype; the result is the initializer's value, readable once the file is closed.

        What is smaller than a byte is packed as ONNX wants it.
        """
        dtype = ir.DataType.from_numpy(array.dtype)
        if dtype.bitwidth < 8:
            data = np.frombuffer(ir.Tensor(array).tobytes(), np.uint8)
        else:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offset = 0  # of an empty tensor, because ONNX Runtime refuses to read nothing at the end of the file
        if array.size:
            end = self._file.tell()
            offset = place(end, data.nbytes)
            self._file.write(bytes(offset - end))
            self._file.write(data.data)
        return ir.ExternalTensor(
            self.path.name,
            offset,
            data.nbytes,
            dtype,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self.path.parent,
        )


def place(end: int, size: int) -> int:
    """Where the next tensor of `size` bytes starts in a file that ends at `end`."""
    alignment = LARGE_ALIGNMENT if size >= LARGE_BYTES else SMALL_ALIGNMENT
    return end + -end % alignment
