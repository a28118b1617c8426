"""How long each run of an engine takes, predicted or measured: what a simulation goes by."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Seconds that grow evenly. fixed: of each run; row: of each row in it; pair: of each key that a row attends to."""

    fixed: float = 0.0
    row: float = 0.0
    pair: float = 0.0

    def seconds(self, rows: float, pairs: float) -> float:
        return self.fixed + self.row * rows + self.pair * pairs


Lines = tuple[Line, ...]
"""Of what is done at the same time, as computing and reading are: the slowest counts."""


def slowest(lines: Sequence[Line], rows: float, pairs: float) -> float:
    """Seconds of a run."""
    if len(lines) == 1:
        return lines[0].seconds(rows, pairs)
    return max(line.seconds(rows, pairs) for line in lines)


@dataclass(frozen=True)
class ModelTimes:
    """Of one model. Rows of a step are questions, of extend tokens that are appended, of encode pieces of pictures.

    outside: seconds to open a question's pictures, where this model does, and to tokenize it.
    """

    step: Lines
    extend: Lines
    encode: Lines
    outside: float = 0.0


@dataclass(frozen=True)
class PairTimes:
    """turn, resume: seconds beside the engines of each turn of the scheduler, and of each question that goes on."""

    small: ModelTimes
    large: ModelTimes
    turn: float = 0.0
    resume: float = 0.0
