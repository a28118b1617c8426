"""The model `small_vlm`: answers, decides, and says which visual tokens matter."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.runtime.generate import IsCancelled

from engine.config import SamplingConfig
from engine.errors import EngineError
from engine.runtime.pipeline import Outcome
from tools.triton import backend
from tools.triton.cancellation import flag
from tools.triton.inquiry import Inquiry
from tools.triton.metrics import ModelMetrics
from tools.triton.reply import answer_outputs, decision_outputs


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        self._reader = backend.open_reader(args)
        self._pipeline = backend.open_pipeline(args, "small", self._reader)
        self._metrics = ModelMetrics("small_vlm")
        if self._reader.serve.warm_up:
            self._pipeline.answer_small([backend.warm_up_question(SamplingConfig(max_new_tokens=2))])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request; those that arrived together run as one batch."""
        inquiries = [backend.try_read(self._reader, request) for request in requests]
        batch = [
            (inquiry, inquiry.question(is_cancelled=_is_cancelled(request, inquiry)))
            for request, inquiry in zip(requests, inquiries, strict=True)
            if isinstance(inquiry, Inquiry)
        ]

        def run(indices: Sequence[int]) -> list[Outcome]:
            return self._pipeline.answer_small([batch[index][1] for index in indices])

        outcomes = iter(backend.answer_together(run, len(batch)) if batch else [])
        return [
            self._respond(inquiry, next(outcomes)) if isinstance(inquiry, Inquiry) else backend.error_response(inquiry)
            for inquiry in inquiries
        ]

    def _respond(self, inquiry: Inquiry, outcome: Outcome) -> Any:
        if isinstance(outcome, EngineError):
            return backend.error_response(outcome)
        self._metrics.record(outcome)
        return backend.response(answer_outputs(outcome, inquiry) | decision_outputs(outcome))


def _is_cancelled(request: Any, inquiry: Inquiry) -> IsCancelled:
    """Asked once per token: of the model that passed the question on, else of the server."""
    return request.is_cancelled if inquiry.cancel_token is None else flag(inquiry.cancel_token).exists
