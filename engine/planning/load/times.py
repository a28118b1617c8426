"""How long each run of an engine takes, predicted or measured: what a simulation goes by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 3
"""Of a fit, each with the weights that the last one says."""
APART = 0.05
"""Of a column, the part that others must leave unsaid for runs to tell them apart: what they hardly differ in would be
read off their noise."""


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
    # Asked for every run that is simulated: a call for each line would take longer than the sums.
    most = 0.0
    for line in lines:
        seconds = line.fixed + line.row * rows + line.pair * pairs
        if seconds > most:
            most = seconds
    return most


@dataclass(frozen=True)
class ModelTimes:
    """Of one model. Rows of a step are questions, of extend tokens that are appended, of encode pieces of pictures.

    outside: seconds to open a question's pictures, where this model does, and to tokenize it; finish: to read what its
    visual tokens received.
    """

    step: Lines
    extend: Lines
    encode: Lines
    outside: float = 0.0
    finish: float = 0.0


@dataclass(frozen=True)
class PairTimes:
    """turn, resume: seconds beside the engines of each turn of the scheduler, and of each question that goes on."""

    small: ModelTimes
    large: ModelTimes
    turn: float = 0.0
    resume: float = 0.0


def fitted(runs: Sequence[tuple[float, float, float]]) -> Line:
    """Rows, pairs and seconds of runs -> the line that they lie about, each as far off as it is long.

    Raises ValueError if there are none.
    """
    if not runs:
        raise ValueError("no runs")
    rows, pairs, seconds = (np.array(column, np.float64) for column in zip(*runs, strict=True))
    features = np.stack([np.ones_like(rows), rows, pairs], axis=1)
    weights, found, told = np.ones_like(seconds), np.zeros(3), _told_apart(features, order=(1, 2, 0))
    for _ in range(ROUNDS):
        found = _not_negative(features * weights[:, None], seconds * weights, told)
        weights = 1 / np.maximum(features @ found, seconds.mean() / 1000)
    return Line(*found.tolist())


def _told_apart(features: np.ndarray, order: Sequence[int]) -> list[int]:
    """[N,F] -> those that are more than what others before them, in this order, say already."""
    told: list[int] = []
    for index in order:
        column, before = features[:, index], features[:, told]
        left = column - before @ np.linalg.lstsq(before, column, rcond=None)[0] if told else column
        if np.linalg.norm(left) > APART * np.linalg.norm(column):
            told.append(index)
    return told


def _not_negative(features: np.ndarray, values: np.ndarray, used: Sequence[int]) -> np.ndarray:
    """[N,F], [N] -> [F]: least squares of some features; what would be below 0 is 0."""
    used = list(used)
    found = np.zeros(features.shape[1])
    scale = np.maximum(np.abs(features).max(axis=0), np.finfo(np.float64).tiny)
    while used:
        some, *_ = np.linalg.lstsq(features[:, used] / scale[used], values, rcond=1e-6)
        if some.min() >= 0:
            found[used] = some / scale[used]
            break
        del used[int(some.argmin())]
    return found
