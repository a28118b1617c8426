"""The model `large_vlm`: answers with the visual tokens that matter, as it goes if the request says `stream`."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config import SamplingConfig
from engine.errors import EngineError
from engine.runtime.pipeline import Outcome
from engine.runtime.question import Question
from tools.triton import backend
from tools.triton.cancellation import flag
from tools.triton.inquiry import Inquiry
from tools.triton.metrics import ModelMetrics
from tools.triton.reply import answer_outputs, text


class Reply:
    """The responses to one request."""

    def __init__(self, inquiry: Inquiry, sender: Any) -> None:
        self.inquiry, self._sender = inquiry, sender
        self._started = False

    def question(self) -> Question:
        token = self.inquiry.cancel_token
        return self.inquiry.question(
            self._send_piece if self.inquiry.stream else None,
            self._sender.is_cancelled if token is None else flag(token).exists,
        )

    def finish(self, outcome: Outcome) -> None:
        if not isinstance(outcome, EngineError):
            outputs = answer_outputs(outcome, self.inquiry)
            if self.inquiry.stream:
                outputs["text_output"] = text("")
            backend.send_last(self._sender, backend.response(outputs))
        elif self._started:
            backend.send_last(self._sender, backend.response({"error": text(str(outcome))}))
        else:
            backend.send_last(self._sender, backend.error_response(outcome))

    def _send_piece(self, piece: str) -> None:
        self._started = True
        self._sender.send(backend.response({"text_output": text(piece)}))

    def retry(self) -> None:
        """Raises EngineError once something was sent: it would be sent twice."""
        if self._started:
            raise EngineError("the model failed in the middle of the answer; see the server's log")


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        self._reader = backend.open_reader(args)
        self._pipeline = backend.open_pipeline(args, "large", self._reader)
        self._metrics = ModelMetrics("large_vlm")
        if self._reader.serve.warm_up:
            self._pipeline.answer_large([backend.warm_up_question(SamplingConfig(max_new_tokens=2))], [None])

    def finalize(self) -> None:
        """Several ranks of the model end with the pipeline that started them."""
        del self._pipeline

    def execute(self, requests: Sequence[Any]) -> None:
        """Requests that arrived together run as one batch; each is answered through its own sender."""
        replies = []
        for request in requests:
            sender, inquiry = request.get_response_sender(), backend.try_read(self._reader, request)
            if isinstance(inquiry, Inquiry):
                replies.append(Reply(inquiry, sender))
            else:
                backend.send_last(sender, backend.error_response(inquiry))

        def run(indices: Sequence[int]) -> list[Outcome]:
            batch = [replies[index] for index in indices]
            for reply in batch:
                reply.retry()
            return self._pipeline.answer_large(
                [reply.question() for reply in batch], [reply.inquiry.importance for reply in batch]
            )

        outcomes = backend.answer_together(run, len(replies)) if replies else []
        for reply, outcome in zip(replies, outcomes, strict=True):
            if not isinstance(outcome, EngineError):
                self._metrics.record(outcome)
            reply.finish(outcome)
