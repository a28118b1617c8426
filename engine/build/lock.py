"""Keeping builds of the same engine directory out of each other's way."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.build_flags import BuildFlag
from engine.errors import EngineError


class BuildRunning(EngineError):
    """Another build is writing the same engine directory."""


@contextmanager
def locked(out: Path, part: str = "", shared: bool = False) -> Iterator[None]:
    """Keep other builds out of `out`, or out of a part of it; `shared`: only those that want all of it.

    Raises BuildRunning.
    """
    path = out.with_name(f".{out.name}{part and '.'}{part}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # Its last owner may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BlockingIOError:
            os.close(descriptor)
            raise BuildRunning(
                f"another build is writing {out}; wait until it is done or choose another {BuildFlag.OUT}"
            ) from None
        os.close(descriptor)
    try:
        yield
    finally:
        if not shared:  # others may hold a shared one
            path.unlink(missing_ok=True)
        os.close(descriptor)
