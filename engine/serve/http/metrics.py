"""The metrics of `engine.serve.measures` for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.serve.measures import METRICS, PREFIX, Kind, Metric

KINDS: dict[Kind, Any] = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}


class Metrics:
    """A sink; any thread may count."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._metrics: dict[tuple[str, str], Any] = {}
        for metric in METRICS:
            self._make(metric, model)

    def _make(self, metric: Metric, model: str) -> None:
        names = ["model", *([metric.label] if metric.label else [])]
        buckets = {"buckets": metric.buckets} if metric.kind is Kind.HISTOGRAM else {}
        family = KINDS[metric.kind](
            f"{PREFIX}{metric.name}", metric.description, names, registry=self._registry, **buckets
        )
        for value in metric.values or ("",):
            labels = [model, *([str(value)] if metric.label else [])]
            self._metrics[metric.name, value] = family.labels(*labels)

    def count(self, name: str, amount: float = 1, value: str = "") -> None:
        self._metrics[name, value].inc(amount)

    def observe(self, name: str, number: float, value: str = "") -> None:
        self._metrics[name, value].observe(number)

    def set(self, name: str, number: float) -> None:
        self._metrics[name, ""].set(number)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
