"""What the models add to the server's metrics endpoint."""

import threading
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from engine.runtime.answer import Answer
from engine.runtime.question import Stage

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
LOCK = threading.Lock()
"""Two metric calls of one process at a time crash servers up to 2.51."""
DECODE = (Stage.SMALL_DECODE, Stage.LARGE_DECODE)


class Counts:
    """Metrics of one kind, one per name; a family must outlive its metrics, so it is kept beside them."""

    def __init__(self, kind: Any, labels: Mapping[str, str], **descriptions: str) -> None:
        self._families = {
            name: pb_utils.MetricFamily(name=f"sgl_{name}", description=text, kind=kind)
            for name, text in descriptions.items()
        }
        self._metrics = {name: family.Metric(labels=dict(labels)) for name, family in self._families.items()}

    def add(self, name: str, amount: float = 1) -> None:
        with LOCK:
            self._metrics[name].increment(amount)

    def set(self, name: str, value: float) -> None:
        with LOCK:
            self._metrics[name].set(value)


class ModelMetrics:
    """Of `small_vlm` and `large_vlm`."""

    def __init__(self, model: str) -> None:
        labels = {"model": model}
        self._counters = Counts(
            pb_utils.MetricFamily.COUNTER,
            labels,
            invocations_total="Questions that the model answered",
            visual_tokens_total="Visual tokens that the model saw",
            visual_tokens_kept_total="Visual tokens that were not pruned",
            generated_tokens_total="Tokens that the model generated",
        )
        self._gauges = Counts(
            pb_utils.MetricFamily.GAUGE,
            labels,
            tokens_per_second="Decoding speed of the last answer",
        )
        self._family = pb_utils.MetricFamily(
            name="sgl_stage_seconds", description="Time of a stage", kind=pb_utils.MetricFamily.HISTOGRAM
        )
        stages = [stage for stage in Stage if stage.split()[0] == model.removesuffix("_vlm")]
        if model == "small_vlm":
            stages.append(Stage.CONSISTENCY)
        self._stages = {
            stage: self._family.Metric(labels=labels | {"stage": str(stage)}, buckets=SECONDS) for stage in stages
        }

    def record(self, answer: Answer) -> None:
        self._counters.add("invocations_total")
        self._counters.add("visual_tokens_total", answer.visual_tokens)
        self._counters.add("visual_tokens_kept_total", answer.num_kept())
        self._counters.add("generated_tokens_total", len(answer.token_ids))
        for stage, seconds in answer.seconds.items():
            with LOCK:
                self._stages[Stage(stage)].observe(seconds)
            if stage in DECODE and seconds:
                self._gauges.set("tokens_per_second", len(answer.token_ids) / seconds)


class CascadeMetrics:
    """Of `sgl`."""

    def __init__(self) -> None:
        labels = {"model": "sgl"}
        self._counters = Counts(
            pb_utils.MetricFamily.COUNTER,
            labels,
            questions_total="Questions that arrived",
            early_exits_total="Questions that the small model answered",
            failures_total="Questions that ended in an error, cancellations included",
        )
        self._gauges = Counts(pb_utils.MetricFamily.GAUGE, labels, queue_depth="Questions in progress")

    def arrived(self) -> None:
        self._counters.add("questions_total")
        self._gauges.add("queue_depth", 1)

    def left(self) -> None:
        self._gauges.add("queue_depth", -1)

    def exited(self) -> None:
        self._counters.add("early_exits_total")

    def failed(self) -> None:
        self._counters.add("failures_total")
