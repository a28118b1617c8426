"""Where a TensorRT plan reads and writes: at addresses that it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.runtime.arrays import array_namespace

ALIGNMENT = 256
"""Bytes, of the address of every input and output (`setTensorAddress` in NvInferRuntime.h)."""
Tensor = Any
"""Of torch."""
Copy = tuple[Tensor, Tensor]
"""What is written, and from where."""


@dataclass(frozen=True)
class Placed:
    """tensors: what the plan is given, by name; before, after: copies around each of its runs."""

    tensors: Mapping[str, Tensor]
    before: Sequence[Copy]
    after: Sequence[Copy]


NOWHERE = Placed({}, (), ())


def place(bound: Mapping[str, Tensor], aliases: Mapping[str, str | None]) -> Placed:
    """Copies of tensors at addresses that a plan does not take, or does not take twice; all others as they are.

    aliases: every output, and the input whose memory it wants (KV caches). Any other may be written before an input
    that lies there has been read.
    """
    tensors, inputs = dict(bound), bound.keys() - aliases.keys()
    for name in inputs:
        if not _is_aligned(bound[name]):
            tensors[name] = _new(bound[name])
    read = {bound[name].data_ptr() for name in inputs}
    for name, alias in aliases.items():
        address = bound[name].data_ptr()
        if alias is not None and address == bound[alias].data_ptr():
            tensors[name] = tensors[alias]
        elif address in read or not _is_aligned(bound[name]):
            tensors[name] = _new(bound[name])
    moved = [name for name, tensor in tensors.items() if tensor.data_ptr() != bound[name].data_ptr()]
    return Placed(
        tensors,
        [(tensors[name], bound[name]) for name in moved if name not in aliases],
        [(bound[name], tensors[name]) for name in moved if name in aliases],
    )


def _new(tensor: Tensor) -> Tensor:
    return array_namespace(tensor).empty_like(tensor)


def _is_aligned(tensor: Tensor) -> bool:
    return bool(tensor.data_ptr() % ALIGNMENT == 0)
