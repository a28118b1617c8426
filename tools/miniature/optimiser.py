"""AdamW over float32 copies of bfloat16 weights: warm-up, then a cosine to the last step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

WARM_UP = 100
"""Steps."""
LAST_RATE = 0.02
"""Of the highest."""


class Optimiser:
    """Steps on losses at the rate that their number says; the parameters are what float32 says, rounded.

    A matrix product of bfloat16 takes about half of the time of one of float32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, total: int) -> None:
        self.parameters = list(parameters)
        self.exact = [parameter.detach().float().clone() for parameter in self.parameters]
        self.rate, self.total, self.done = rate, total, 0
        self.adam = torch.optim.AdamW(self.exact, lr=rate, betas=(0.9, 0.99), weight_decay=0.05, foreach=True)

    def step(self, loss: torch.Tensor) -> None:
        warm = min(1.0, (self.done + 1) / WARM_UP)
        cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * min(1.0, self.done / self.total))) / 2
        for group in self.adam.param_groups:
            group["lr"] = self.rate * warm * cosine
        loss.backward()
        for parameter, exact in zip(self.parameters, self.exact, strict=True):
            exact.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(self.exact, 1.0)
        self.adam.step()
        self._round()
        self.done += 1

    def state(self) -> dict[str, Any]:
        return {"exact": self.exact, "adam": self.adam.state_dict(), "done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for exact, saved in zip(self.exact, state["exact"], strict=True):
                exact.copy_(saved)
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        torch._foreach_copy_(tuple(self.parameters), self.exact)
