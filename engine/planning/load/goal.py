"""What answers are to be like: `p95 ttft 300ms`."""

import re
from dataclasses import dataclass
from enum import StrEnum

from engine.planning.load.outlook import PERCENTILES, Estimate, Outlook

MOST_BUSY = 0.8
"""Of the time, without a goal: with more, waits grow long whenever some more come."""


class Figure(StrEnum):
    TTFT = "ttft"
    """Time to the first text."""
    ANSWER = "answer"


@dataclass(frozen=True)
class Goal:
    """So large a share of questions, in percent, has it in so many seconds."""

    percentile: int
    figure: Figure
    seconds: float

    def estimate(self, outlook: Outlook) -> Estimate:
        return (outlook.first if self.figure is Figure.TTFT else outlook.last)[self.percentile]

    def __str__(self) -> str:
        return f"p{self.percentile} {self.figure} {1000 * self.seconds:g}ms"


def read_goal(text: str) -> Goal:
    """Raises ValueError."""
    match = re.fullmatch(r"p(\d+) +(ttft|answer) +(?:<=? *)?(\d+(?:\.\d+)?) *(ms|s)", text.strip())
    if match is None or int(match[1]) not in PERCENTILES or not float(match[3]):
        shares = ", ".join(f"p{share}" for share in PERCENTILES)
        raise ValueError(f"{text!r} is no goal such as 'p95 ttft 300ms', of {shares}, and ttft or answer")
    return Goal(int(match[1]), Figure(match[2]), float(match[3]) / (1000 if match[4] == "ms" else 1))


def is_met(goals: tuple[Goal, ...], outlook: Outlook) -> bool:
    """Without a goal: whether the engines are busy for no more than `MOST_BUSY` of the time."""
    if not outlook.keeps_up:
        return False
    if not goals:
        return outlook.utilisation <= MOST_BUSY
    return all(goal.estimate(outlook).seconds <= goal.seconds for goal in goals)


def is_settled(goals: tuple[Goal, ...], outlook: Outlook) -> bool:
    """Whether more questions would hardly change what `is_met` says."""
    if not outlook.keeps_up:
        return True
    if not goals:
        return abs(outlook.utilisation - MOST_BUSY) > 0.05
    clear = [abs(goal.estimate(outlook).seconds - goal.seconds) > goal.estimate(outlook).error for goal in goals]
    missed = [goal.estimate(outlook).seconds > goal.seconds for goal in goals]
    return all(clear) or any(far and late for far, late in zip(clear, missed, strict=True))
