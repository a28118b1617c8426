"""A rank of ours, given as `-m MODULE …`, that does not do what the file `FAILURES` says.

A line in it is `RANK VERB ERROR`; whichever rank does as it says takes the file away.
"""

import builtins
import os
import runpy
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mpi4py import MPI

from engine import errors
from engine.runtime.language import LanguageModel
from engine.runtime.slots import Slots
from engine.runtime.vision import VisionEncoder


def failing(verb: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def fail(*arguments: Any) -> Any:
        failures = Path(os.environ["FAILURES"])
        rank, named, error = ("", "", "")
        with suppress(FileNotFoundError):  # the rank that fails removes it
            rank, named, error = failures.read_text().split()
        if (rank, named) == (str(MPI.COMM_WORLD.rank), verb):
            failures.unlink()
            raise {**vars(builtins), **vars(errors)}[error](f"there is no room to {verb}")
        return run(*arguments)

    return fail


if __name__ == "__main__":
    for model, verbs in (
        (Slots, ("open",)),
        (LanguageModel, ("extend", "step", "visual_scores", "truncate", "close")),
        (VisionEncoder, ("encode",)),
    ):
        for verb in verbs:
            setattr(model, verb, failing(verb, getattr(model, verb)))
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
