"""A program of ours, given as `-m MODULE …`, that prints its first words and goes on when the file `GO_ON` exists."""

import os
import runpy
import sys
import time
from typing import TextIO


class Held:
    """A stream that is held up once it has been written to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._written = stream, ""

    def write(self, text: str) -> int:
        while self._written and not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)
        self._written += text
        return self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


if __name__ == "__main__":
    sys.stdout = Held(sys.stdout)  # type: ignore[assignment]
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
