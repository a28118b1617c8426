"""Reading a published checkpoint: safetensors only, and only the rows that are asked for."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from engine.bounds import is_line, shown
from engine.errors import CheckpointError
from engine.families.fields import read_object
from engine.verification import file_sha256

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DESCRIPTIONS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What a build reads besides weights: configuration and tokenizer files."""

MOST_TENSORS = 1 << 18
"""Of one file."""
MOST_HEADER = 1 << 25
"""Bytes of a file's own list of its tensors."""
LONGEST_NAME = 200
"""Characters of the name of a shard or a tensor."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class _Tensor:
    shard: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """The tensors of `model.safetensors`, or of an index and its shards. Raises CheckpointError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is not a directory; give the directory of a downloaded checkpoint")
        index = directory / INDEX
        if (directory / WEIGHTS).is_file():
            self._tensors = _list_shard(directory / WEIGHTS)
        elif index.is_file():
            self._tensors = _list_indexed(index)
        else:
            raise CheckpointError(_nothing_readable(directory))

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def expect(self, name: str, shape: Sequence[int]) -> None:
        """Raises CheckpointError unless the tensor is there with this shape."""
        found = self.shape(name)
        self._check_dtype(name)
        if found != tuple(shape):
            raise CheckpointError(
                f"tensor {name} of {self.directory} has shape {list(found)}, but its config.json asks for "
                f"{list(shape)}; download both from the same revision"
            )

    def read(
        self, name: str, rows: Sequence[tuple[int, int]] | None = None, columns: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The tensor in the dtype of the file, or half-open ranges of it: nothing else is read.

        rows: ranges of the first dimension, concatenated in order.
        columns: one range of the second dimension.
        """
        self._check_dtype(name)
        tensor = self._find(name)
        if rows is None and columns is None:
            with _opened(tensor.shard) as shard:
                return shard.get_tensor(name)
        num_rows, *rest = tensor.shape or (0,)
        rows = [(0, num_rows)] if rows is None else rows
        ranges = [*((start, stop, num_rows) for start, stop in rows)]
        if columns is not None:
            ranges.append((*columns, rest[0] if rest else 0))
            rest[:1] = [columns[1] - columns[0]]
        if any(not 0 <= start <= stop <= size for start, stop, size in ranges):
            raise CheckpointError(
                f"tensor {name} of {tensor.shard} has shape {list(tensor.shape)}, which lacks rows {list(rows)}"
                f"{'' if columns is None else f', columns {columns}'}; its config.json is of another model"
            )
        result = np.empty((sum(stop - start for start, stop in rows), *rest), DTYPES[tensor.dtype])
        if result.size == 0:
            return result
        filled = 0
        with _opened(tensor.shard) as shard:
            part = shard.get_slice(name)
            for start, stop in rows:
                if start == stop:
                    continue
                wanted = slice(start, stop)
                result[filled : filled + stop - start] = part[wanted if columns is None else (wanted, slice(*columns))]
                filled += stop - start
        return result

    def fingerprint(self, on_progress: Callable[[float], None] = lambda fraction: None) -> str:
        """SHA-256 over names and contents of every file that a build may read; `on_progress` gets 0..1."""
        described = {path for pattern in DESCRIPTIONS for path in self.directory.glob(pattern) if path.is_file()}
        files = sorted(described | {tensor.shard for tensor in self._tensors.values()})
        total = sum(path.stat().st_size for path in files)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            on_progress(done / total)

        digest = hashlib.sha256()
        for path in files:
            try:
                digest.update(f"{file_sha256(path, count)} {path.name}\n".encode())
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read ({error.strerror}); make it readable") from None
        return digest.hexdigest()

    def _check_dtype(self, name: str) -> None:
        tensor = self._find(name)
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name} of {tensor.shard} is stored as {tensor.dtype}; give a checkpoint in "
                f"one of {', '.join(DTYPES)}"
            )

    def _find(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise CheckpointError(
                f"tensor {name} is missing from {self.directory}; download the checkpoint again, complete"
            )
        return self._tensors[name]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    # Opened for each read: a mapping that stays open counts every page it ever read as resident memory.
    try:
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > MOST_HEADER:
                raise CheckpointError(
                    f"{path} cannot be read as safetensors (its list of tensors has more than {MOST_HEADER} bytes); "
                    "download it again"
                )
        with safe_open(path, framework="numpy") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); download it again") from None


def _list_shard(path: Path) -> dict[str, _Tensor]:
    with _opened(path) as shard:
        names = shard.keys()
        if len(names) > MOST_TENSORS:
            raise CheckpointError(f"{path} holds {len(names)} tensors, more than {MOST_TENSORS}; use another one")
        if odd := next((name for name in names if len(name) > LONGEST_NAME or not is_line(name)), None):
            raise CheckpointError(f"{path} names a tensor {shown(odd)}; get it from its publisher")
        parts = {name: shard.get_slice(name) for name in names}
        return {name: _Tensor(path, tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def _list_indexed(index: Path) -> dict[str, _Tensor]:
    shard_of = read_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(file, str) for file in shard_of.values()):
        raise CheckpointError(f"{index} is not an index of safetensors, tensor to shard; download it again")
    found: dict[str, _Tensor] = {}
    for file in sorted(set(shard_of.values())):
        path = index.parent / file
        # By name, not by target: download caches keep shards as links to files elsewhere.
        if Path(file).name != file or path.suffix != ".safetensors" or not is_line(file) or len(file) > LONGEST_NAME:
            raise CheckpointError(
                f"{index} names shard {shown(file)}, which is not a .safetensors file beside it; "
                "get it from its publisher"
            )
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though {INDEX} names it; download that shard")
        found |= {name: tensor for name, tensor in _list_shard(path).items() if shard_of.get(name) == file}
    for name in shard_of.keys() - found.keys():
        raise CheckpointError(
            f"{index.parent / shard_of[name]} lacks tensor {name}, though {INDEX} says so; download that shard again"
        )
    return found


def _nothing_readable(directory: Path) -> str:
    if adapter := next(directory.glob("adapter_*"), None):
        return (
            f"{directory} holds a LoRA adapter ({adapter.name}) without its base model; merge it into that "
            "(merge_and_unload of peft), save the result and build from it"
        )
    if any(directory.glob("*.safetensors")):
        return f"{directory} holds safetensors but neither {WEIGHTS} nor {INDEX}; download the index too"
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory} holds only pickled weights ({pickles[0]}), which are refused (safetensors only, no code "
            f"from a checkpoint is executed); download a revision with {WEIGHTS} or convert it to safetensors"
        )
    return f"{directory} holds no weights; download {WEIGHTS}, or {INDEX} and its shards, into it"
