"""What the model adds to the server's metrics endpoint.

Touched by one thread: two metric calls of one process at a time crash servers up to 2.51. A call goes to the server's
process and back, so counts are gathered and handed over together.
"""

import time
from collections import defaultdict
from typing import Any

import triton_python_backend_utils as pb_utils

from engine.runtime.scheduler import Load
from engine.serve.measures import METRICS, PREFIX, Kind, Metric, set_load
from engine.serve.triton.tensors import MODEL

HAND_OVER_SECONDS = 0.5


class Metrics:
    """A sink. Gauges start at 0, whatever a process that died left there."""

    def __init__(self) -> None:
        self._families: list[Any] = []
        """A family must outlive its metrics."""
        self._metrics: dict[tuple[str, str], Any] = {}
        """By name and value of the label."""
        for metric in METRICS:
            self._make(metric)
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._observed: list[tuple[tuple[str, str], float]] = []
        self._gauges: dict[str, float] = {}
        self._due = 0.0
        set_load(self, Load(0, 0, 0, 0), 0)

    def _make(self, metric: Metric) -> None:
        family = pb_utils.MetricFamily(
            name=f"{PREFIX}{metric.name}",
            description=metric.description,
            kind=getattr(pb_utils.MetricFamily, metric.kind.upper()),
        )
        self._families.append(family)
        buckets = {"buckets": list(metric.buckets)} if metric.kind is Kind.HISTOGRAM else {}
        for value in metric.values or ("",):
            labels = {"model": MODEL} | ({metric.label: str(value)} if metric.label else {})
            self._metrics[metric.name, value] = family.Metric(labels=labels, **buckets)

    def count(self, name: str, amount: float = 1, value: str = "") -> None:
        self._counts[name, value] += amount

    def observe(self, name: str, number: float, value: str = "") -> None:
        self._observed.append(((name, value), number))

    def set(self, name: str, number: float) -> None:
        if self._gauges.get(name) != number:
            self._gauges[name] = number
            self._metrics[name, ""].set(number)

    def hand_over(self, load: Load, in_flight: int, is_idle: bool) -> None:
        """To the server: now if there is nothing else to do, else now and then. in_flight: questions not yet ended."""
        if not is_idle and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + HAND_OVER_SECONDS
        for key, amount in self._counts.items():
            if amount:
                self._metrics[key].increment(amount)
        self._counts.clear()
        for key, value in self._observed:
            self._metrics[key].observe(value)
        self._observed.clear()
        set_load(self, load, in_flight)
