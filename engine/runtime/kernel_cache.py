"""Kernels that TensorRT-RTX compiled when a plan was opened, kept beside it: the next start on such a GPU has them."""

import os
import weakref
from pathlib import Path
from typing import Any

KERNEL_CACHE_SUFFIX = ".kernels"


class KernelCache:
    """The runtime cache of one engine; it must outlive the engine's contexts.

    A cache of another GPU, driver or version is refused by the library, and replaced.
    """

    def __init__(self, cache: Any, path: Path) -> None:
        """cache: of the library; path: the file."""
        self._cache, self._path = cache, path
        # Kernels for new shapes are compiled behind a run's back, so there is no better moment than the last.
        weakref.finalize(self, _save, cache, path)

    @classmethod
    def read(cls, cache: Any, path: Path) -> "KernelCache":
        """Fill an empty one of the library's, if the file is there."""
        if path.is_file():
            cache.deserialize(path.read_bytes())
        return cls(cache, path)

    def attach(self, config: Any) -> None:
        """Let contexts that are made with this configuration read and fill it. Raises RuntimeError."""
        if not config.set_runtime_cache(self._cache):
            raise RuntimeError(f"the library takes no runtime cache for {self._path.stem}")

    def save(self) -> None:
        """Once the contexts are made, which compiles most of it: a process may be killed later."""
        _save(self._cache, self._path)


def _save(cache: Any, path: Path) -> None:
    """Unless the file holds it already. The file is replaced at once: several processes may have opened the plan."""
    content = bytes(cache.serialize() or b"")
    if not content:
        return
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)  # a read-only engine directory is as good, only slower to open
