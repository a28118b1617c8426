"""Answers as the chat completions API has them, whole and in chunks."""

import secrets
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.serve.http.response_schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    ClipFrames,
    Decision,
    Delta,
    Logprobs,
    Report,
    Usage,
)
from engine.serve.spelled import spell

DIGITS = 5
"""Of boxes and importance, behind the point."""


@dataclass(frozen=True)
class Completion:
    """What goes back for one request. threshold: the exit threshold that held."""

    model: str
    threshold: float
    logprobs: bool = False
    return_importance: bool = False
    return_kept: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer, pipeline: SglPipeline) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                Choice(
                    message=AnswerMessage(content=answer.text),
                    logprobs=self._logprobs(answer, pipeline),
                    finish_reason=answer.finish_reason.value,
                )
            ],
            usage=usage(answer),
            sgl=self._report(answer, pipeline),
        )

    def first(self) -> ChatChunk:
        return self._chunk(ChunkChoice(delta=Delta(role="assistant", content="")))

    def piece(self, text: str) -> ChatChunk:
        return self._chunk(ChunkChoice(delta=Delta(content=text)))

    def last(self, answer: Answer, pipeline: SglPipeline) -> ChatChunk:
        """With how the answer came about, and the log-probabilities of all its tokens."""
        choice = ChunkChoice(
            delta=Delta(), logprobs=self._logprobs(answer, pipeline), finish_reason=answer.finish_reason.value
        )
        return self._chunk(choice, sgl=self._report(answer, pipeline))

    def usage(self, answer: Answer) -> ChatChunk:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[], usage=usage(answer))

    def _chunk(self, choice: ChunkChoice, sgl: Report | None = None) -> ChatChunk:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[choice], sgl=sgl)

    def _logprobs(self, answer: Answer, pipeline: SglPipeline) -> Logprobs | None:
        return Logprobs.model_validate({"content": spell(answer, pipeline)}) if self.logprobs else None

    def _report(self, answer: Answer, pipeline: SglPipeline) -> Report:
        pruning = answer.guidance
        report = Report(
            answered_by=answer.answered_by.value,
            early_exit=answer.early_exit,
            small_text=answer.small_text,
            decision=None
            if answer.decision is None
            else Decision(
                criterion=answer.decision.criterion,
                value=answer.decision.value,
                exit_threshold=self.threshold,
                confidence=answer.decision.confidence,
                consistency=answer.decision.consistency,
            ),
            visual_tokens=answer.visual_tokens,
            visual_tokens_kept=answer.num_kept(),
            average_retention=answer.average_retention(),
            prune_layer=None if pruning is None else pruning.prune_layer,
            retention_ratio=answer.retention_ratio(),
            budget=answer.budget,
            tiles=answer.tiles,
            tiles_skipped=answer.tiles_skipped,
            clips=[
                ClipFrames(frames=shown.indices, seconds=shown.seconds, kept=answer.frames_kept(number))
                for number, shown in enumerate(answer.clips)
            ],
            drafted_tokens=answer.drafted,
            accepted_tokens=answer.accepted,
            speculated_tokens=answer.speculated,
            speculated_accepted_tokens=answer.speculated_accepted,
            reuse=asdict(answer.reuse),
            seconds=answer.seconds,
        )
        if self.return_kept:
            kept = range(answer.visual_tokens) if answer.kept is None else answer.kept.tolist()
            report.kept = list(kept)
        if self.return_importance and answer.importance is not None:
            report.importance = [float(f"{value:.{DIGITS}g}") for value in answer.importance.tolist()]
            report.boxes = np.round(answer.boxes.astype(np.float64), DIGITS).tolist()
            report.pictures = answer.images.tolist()
            report.times = None if answer.times is None else np.round(answer.times, DIGITS).tolist()
        return report


def usage(answer: Answer) -> Usage:
    generated = len(answer.token_ids)
    return Usage(
        prompt_tokens=answer.prompt_tokens, completion_tokens=generated, total_tokens=answer.prompt_tokens + generated
    )
