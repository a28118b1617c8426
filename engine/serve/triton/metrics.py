"""What the model adds to the server's metrics endpoint.

Touched by one thread: two metric calls of one process at a time crash servers up to 2.51. A call goes to the server's
process and back, so counts are gathered and handed over together.
"""

import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import triton_python_backend_utils as pb_utils

from engine.errors import ImageError, Overloaded, QuestionCancelled, QuestionTimedOut, RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.question import Stage
from engine.runtime.scheduler import Load
from engine.serve.triton.tensors import MODEL

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
TOKEN_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]
HAND_OVER_SECONDS = 0.5
COUNTERS = {
    "questions_total": "Questions that arrived",
    "answers_total": "Questions that were answered",
    "early_exits_total": "Questions that the small model answered",
    "visual_tokens_total": "Visual tokens that the model that answered saw",
    "visual_tokens_kept_total": "Visual tokens that it used to the end",
    "generated_tokens_total": "Tokens of answers",
    "drafted_tokens_total": "Tokens of the small model's answers that the large one checked",
    "accepted_tokens_total": "Those of them that it would have said, each of which spared it a step",
    "pieces_total": "Pieces of answers, as they came",
}
GAUGES = {
    "running": "Questions that are being answered",
    "waiting": "Questions that wait, also for their pictures",
    "kv_memory_used_bytes": "Keys and values that running questions may fill",
    "kv_memory_free_bytes": "Keys and values that are left for others",
}


class Failure(StrEnum):
    """Why a question was not answered."""

    REQUEST = "request"
    OVERLOADED = "overloaded"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    MODEL = "model"

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        if isinstance(error, RequestError | ImageError):
            return cls.REQUEST
        kinds = {Overloaded: cls.OVERLOADED, QuestionCancelled: cls.CANCELLED, QuestionTimedOut: cls.TIMED_OUT}
        return next((kind for error_type, kind in kinds.items() if isinstance(error, error_type)), cls.MODEL)


class Metrics:
    """Gauges start at 0, whatever a process that died left there."""

    def __init__(self) -> None:
        self._families: list[Any] = []
        """A family must outlive its metrics."""
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self._counters = {name: self._make(name, text, counter)({}) for name, text in COUNTERS.items()}
        failures = self._make("failures_total", "Questions that ended in an error", counter)
        self._failures = {kind: failures({"kind": kind}) for kind in Failure}
        self._gauges = {name: self._make(name, text, gauge)({}) for name, text in GAUGES.items()}
        first = self._make("first_token_seconds", "From a question to the first piece of its answer", SECONDS)
        between = self._make("between_tokens_seconds", "Between tokens of an answer, its mean", TOKEN_SECONDS)
        self._first, self._between = first({}), between({})
        stages = self._make("stage_seconds", "From the start to the end of a stage of an answer", SECONDS)
        self._stages = {stage: stages({"stage": stage}) for stage in Stage}
        self._counts: Counter[Any] = Counter()
        self._observed: list[tuple[Any, float]] = []
        self._load: dict[str, float] = {}
        self._due = 0.0
        self._set(Load(0, 0, 0, 0), 0)

    def _make(self, name: str, description: str, kind: Any) -> Any:
        """A family's maker of metrics. kind: a histogram's buckets, or another kind."""
        buckets = kind if isinstance(kind, list) else None
        kind = pb_utils.MetricFamily.HISTOGRAM if buckets else kind
        family = pb_utils.MetricFamily(name=f"sgl_{name}", description=description, kind=kind)
        self._families.append(family)

        def make(labels: Mapping[str, str]) -> Any:
            given = {"model": MODEL} | {key: str(value) for key, value in labels.items()}
            return family.Metric(labels=given, buckets=buckets) if buckets else family.Metric(labels=given)

        return make

    def arrived(self) -> None:
        self._counts[self._counters["questions_total"]] += 1

    def said(self, pieces: int) -> None:
        self._counts[self._counters["pieces_total"]] += pieces

    def failed(self, error: Exception) -> None:
        self._counts[self._failures[Failure.of(error)]] += 1

    def answered(self, answer: Answer, first: float, last: float) -> None:
        """first, last: seconds from the question to the first and the last piece of its answer."""
        counted = {
            "answers_total": 1,
            "early_exits_total": int(answer.early_exit),
            "visual_tokens_total": answer.visual_tokens,
            "visual_tokens_kept_total": answer.num_kept(),
            "generated_tokens_total": len(answer.token_ids),
            "drafted_tokens_total": answer.drafted,
            "accepted_tokens_total": answer.accepted,
        }
        for name, amount in counted.items():
            self._counts[self._counters[name]] += amount
        self._observed.append((self._first, first))
        if answer.answered_by is AnsweredBy.LARGE and len(answer.token_ids) > 1:
            self._observed.append((self._between, (last - first) / (len(answer.token_ids) - 1)))
        self._observed += [(self._stages[Stage(stage)], seconds) for stage, seconds in answer.seconds.items()]

    def hand_over(self, load: Load, in_flight: int, is_idle: bool) -> None:
        """To the server: now if there is nothing else to do, else now and then. in_flight: questions not yet ended."""
        if not is_idle and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + HAND_OVER_SECONDS
        for metric, amount in self._counts.items():
            if amount:
                metric.increment(amount)
        self._counts.clear()
        for metric, value in self._observed:
            metric.observe(value)
        self._observed.clear()
        self._set(load, in_flight)

    def _set(self, load: Load, in_flight: int) -> None:
        running = min(load.running, in_flight)
        values: dict[str, float] = {
            "running": running,
            "waiting": in_flight - running,
            "kv_memory_used_bytes": load.kv_memory_used,
            "kv_memory_free_bytes": 0 if load.kv_memory is None else load.kv_memory - load.kv_memory_used,
        }
        for name, value in values.items():
            if self._load.get(name) != value:
                self._gauges[name].set(value)
        self._load = values
