"""AdamW under a time budget: warm-up, then a cosine over the time that remains."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

WARM_UP = 30
"""Steps."""
LONGEST_STEP = 30.0
"""Seconds; whatever a step takes beyond was a pause, which is not counted."""


@dataclass
class Clock:
    """How much of a stage's budget is spent; survives a resume."""

    budget: float
    """Seconds."""
    elapsed: float = 0.0
    steps: int = 0
    last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """One more step is done."""
        now = time.monotonic()
        self.elapsed += min(now - self.last, LONGEST_STEP)
        self.steps += 1
        self.last = now

    def fraction(self) -> float:
        return min(1.0, self.elapsed / self.budget)

    def state(self) -> dict[str, float]:
        return {"elapsed": self.elapsed, "steps": self.steps}

    def load(self, state: dict[str, float]) -> None:
        self.elapsed, self.steps = state["elapsed"], int(state["steps"])


class Optimiser:
    """Steps on a loss at the rate that the clock says."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, clock: Clock) -> None:
        self.parameters = list(parameters)
        self.rate, self.clock = rate, clock
        self.adam = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.05, foreach=True)

    def step(self, loss: torch.Tensor) -> None:
        warm = min(1.0, (self.clock.steps + 1) / WARM_UP)
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * self.clock.fraction())) / 2
        for group in self.adam.param_groups:
            group["lr"] = self.rate * warm * cosine
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.clock.tick()
