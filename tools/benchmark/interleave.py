"""Times of several subjects that take turns, so that what the machine does meanwhile meets all of them."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.runtime.prompt import PromptTokens
from tools.benchmark.worker import Worker

SETTLE_SECONDS = 0.1
"""Between two calls: thread pools spin for a while after their last work before they sleep."""
PREFILL, DECODE = "prefill", "decode"
OnProgress = Callable[[float], None]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `count` measurements."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high), len(values))


@dataclass(frozen=True)
class Workload:
    """A prompt and the tokens fed one by one after it; `name` tells it from others."""

    name: str
    prompt: PromptTokens
    answer: np.ndarray

    def calls(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """The methods that a subject has, with arguments, in order."""
        return (PREFILL, (self.prompt, len(self.answer))), (DECODE, (self.answer,))


@dataclass(frozen=True)
class Effort:
    """loads: fresh processes of every subject, for where memory lies in one decides as much as what it computes.
    runs: measured rounds of each load."""

    loads: int
    runs: int


@dataclass
class Timings:
    """Seconds by workload, phase and subject; entry i of every list is of the same round."""

    seconds: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    idle_cpu_seconds: float = 0.0
    idle_seconds: float = 0.0

    def spread(self, workload: str, phase: str, subject: str) -> Spread:
        return spread(self.seconds[workload, phase, subject])

    def ratio(self, workload: str, phase: str, subject: str, *bases: str) -> Spread:
        """Round by round, the subject's time over the mean of the bases'."""
        times = np.array(self.seconds[workload, phase, subject])
        base = np.mean([self.seconds[workload, phase, name] for name in bases], axis=0)
        return spread(list(times / base))

    def idle_share(self) -> float:
        """How much of a core a waiting process used while another was measured."""
        return self.idle_cpu_seconds / max(self.idle_seconds, 1e-9)


def run_interleaved(
    subjects: Mapping[str, Callable[[], Any]], workloads: Sequence[Workload], effort: Effort, on_progress: OnProgress
) -> Timings:
    """Measure every subject on every workload."""
    timings, order = Timings(), random.Random(0)
    for load in range(effort.loads):
        with ExitStack() as stack:
            names = list(subjects)
            names = names[load % len(names) :] + names[: load % len(names)]
            workers = {name: stack.enter_context(Worker(subjects[name])) for name in names}
            # A first round pages weights in and sizes arenas; it does not count.
            for turn in range(-1, effort.runs):
                for workload in workloads:
                    order.shuffle(names)
                    _run_round(workers, names, workload, timings if turn >= 0 else Timings())
                on_progress((load + (turn + 2) / (effort.runs + 1)) / effort.loads)
    return timings


def _run_round(workers: Mapping[str, Worker], names: Sequence[str], workload: Workload, timings: Timings) -> None:
    for phase, arguments in workload.calls():
        for name in names:
            time.sleep(SETTLE_SECONDS)
            reply = workers[name].call(phase, *arguments)
            timings.seconds[workload.name, phase, name].append(reply.seconds)
            timings.idle_cpu_seconds += reply.idle_cpu_seconds
            timings.idle_seconds += (reply.seconds + SETTLE_SECONDS) * (len(names) - 1)


@dataclass(frozen=True)
class Agreement:
    """How close two subjects' logits are, over all workloads and phases."""

    max_difference: float
    cosine: float
    same_top: bool


Logits = dict[tuple[str, str], np.ndarray]
"""By workload and phase."""


def collect_logits(worker: Worker, workloads: Sequence[Workload]) -> Logits:
    """What one subject computes."""
    return {
        (workload.name, phase): worker.call(phase, *arguments).result
        for workload in workloads
        for phase, arguments in workload.calls()
    }


def compare_logits(actual: Logits, expected: Logits) -> Agreement:
    """The worst of all pairs."""
    pairs = [(actual[key].astype(np.float64), expected[key].astype(np.float64)) for key in expected]
    return Agreement(
        max_difference=max(float(np.abs(a - b).max()) for a, b in pairs),
        cosine=min(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs),
        same_top=all(a.argmax() == b.argmax() for a, b in pairs),
    )
