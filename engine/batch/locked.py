"""A file that one process at a time writes."""

import fcntl
import os
from pathlib import Path

from engine.errors import RequestError

LAST_STANDARD = 2
"""The number of stderr."""
ATTEMPTS = 5
"""To open a file that others remove."""


def open_locked(path: Path) -> int:
    """-> a descriptor of the file, locked. Raises RequestError."""
    keep_standard_numbers()
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise RequestError(f"{path} is no ordinary file; give the name of one")
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror}); write to another file") from None
        try:
            _lock(file, path)
            # Whoever had it locked before may have removed it; some file systems number files anew at every look.
            if attempt == ATTEMPTS - 1 or (path.exists() and os.path.samestat(os.fstat(file), path.stat())):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    raise AssertionError


def keep_standard_numbers() -> None:
    """Of standard streams that were closed: what a library says there would be written into the file that gets one."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD:
        pass
    os.close(file)


def _lock(file: int, path: Path) -> None:
    """Until the file is closed. Raises RequestError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(f"another run is writing {path}; wait until it is done, or write to another file") from None
    except OSError as error:
        raise RequestError(
            f"{path} cannot be locked ({error.strerror}), so two runs could write there; use a file system with locks"
        ) from None
