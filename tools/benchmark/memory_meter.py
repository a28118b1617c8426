"""Memory of this process as Linux counts it."""

import threading
from pathlib import Path
from types import TracebackType

INTERVAL_SECONDS = 0.005
STATUS = Path("/proc/self/status")


def status_bytes(field: str) -> int:
    """A field of /proc/self/status such as VmHWM, the most resident memory so far."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


class AnonymousPeak:
    """The most anonymous resident memory inside a `with`, sampled: Linux keeps no high-water mark of it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, status_bytes("RssAnon"))
            if self._done.wait(INTERVAL_SECONDS):
                return
