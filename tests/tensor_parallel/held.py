"""A program of ours, given as `-m MODULE …`, whose large model says a few words and then stands still.

It goes on when the file `GO_ON` exists, or when the pipeline is being closed.
"""

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine.runtime.loop import Loop
from engine.runtime.tensor_parallel_leader import ShardedLanguage

WORDS = 20
"""Steps until then: some text has come."""


def held(step: Callable[..., Any], close: Callable[[Loop], None]) -> tuple[Callable[..., Any], Callable[[Loop], None]]:
    left, closing = iter(range(WORDS)), []

    def hold(*arguments: Any) -> Any:
        while next(left, None) is None and not closing and not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)
        return step(*arguments)

    def close_held(loop: Loop) -> None:
        closing.append(loop)
        close(loop)

    return hold, close_held


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    ShardedLanguage.step, Loop.close = held(ShardedLanguage.step, Loop.close)  # type: ignore[method-assign]
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
