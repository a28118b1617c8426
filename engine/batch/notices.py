"""What a run says on stderr while it goes on; that nobody reads it any more, or a log is full, does not end the run."""

import io
import os
import sys


class Notices(io.TextIOBase):
    """stderr, until it fails; from then on nothing."""

    def write(self, text: str) -> int:
        if sys.stderr is not None:
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:
                _leave_stderr()
        return len(text)

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()


def tell(sentence: str) -> None:
    print(sentence, file=Notices(), flush=True)


def _leave_stderr() -> None:
    """What it still holds goes nowhere, so that its end is none of the run's either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stderr.fileno())
    finally:
        os.close(nowhere)
