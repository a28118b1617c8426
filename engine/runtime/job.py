"""A question on its way through the cascade, and what each stage adds to it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.errors import EngineError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.early_exit import ExitDecision, needs_consistency
from engine.runtime.generate import Completion, IsCancelled, OnText
from engine.runtime.guidance import keep_rows, resample, score_rows, select
from engine.runtime.images import ImageSource
from engine.runtime.language import Pruning, Request
from engine.runtime.model import Encoded, Visuals


@dataclass(frozen=True)
class Question:
    """One request. None stands for the engine's defaults; on_text receives the answer piece by piece."""

    images: tuple[ImageSource, ...]
    text: str
    guidance: GuidanceConfig | None = None
    exit: ExitConfig | None = None
    sampling: SamplingConfig | None = None
    on_text: OnText | None = None
    is_cancelled: IsCancelled | None = None


@dataclass
class View:
    """What one model made of a question."""

    visuals: Visuals
    encoded: Encoded
    features: np.ndarray
    completion: Completion | None = None


@dataclass
class Job:
    """A question with its settings resolved. `small` and `large` are None until that model runs.

    grid: the pictures cut up as the small model wants them; `importance` is of its visual tokens.
    """

    question: Question
    images: tuple[Image.Image, ...]
    guidance: GuidanceConfig
    exit: ExitConfig
    sampling: SamplingConfig
    seconds: dict[str, float] = field(default_factory=dict)
    small: View | None = None
    large: View | None = None
    grid: Visuals | None = None
    importance: np.ndarray | None = None
    decision: ExitDecision | None = None
    kept: np.ndarray | None = None
    error: EngineError | None = None

    @contextmanager
    def fails_alone(self) -> Iterator[None]:
        """An error of this question ends it, and no other question of its batch."""
        try:
            yield
        except EngineError as error:
            self.error = error

    def wants_guidance(self) -> bool:
        return self.guidance.enabled and bool(self.images)

    def wants_small(self) -> bool:
        return self.wants_guidance() or self.exit.enabled

    def wants_scores(self) -> bool:
        return self.wants_guidance() or self.wants_consistency()

    def wants_consistency(self) -> bool:
        return self.exit.enabled and needs_consistency(self.exit)

    def exits_early(self) -> bool:
        return self.decision is not None and self.decision.early_exit

    def small_request(self) -> Request:
        """What the small model prefills, and which of its rows score."""
        assert self.small is not None
        encoded = self.small.encoded
        rows = score_rows(encoded.visual_positions, len(encoded.ids), self.guidance.rows)
        return Request(encoded.prompt(self.small.features), score_rows=rows if self.wants_scores() else rows[:0])

    def large_request(self) -> Request:
        """What the large model prefills, pruned by the small one's importance; settles `kept`."""
        assert self.large is not None
        encoded, visuals = self.large.encoded, self.large.visuals
        prompt = encoded.prompt(self.large.features)
        tokens = len(visuals.boxes)
        if not self.wants_guidance():
            return Request(prompt)
        source = self.grid
        assert self.importance is not None and source is not None, "guidance runs the small model first"
        if not visuals.same_grid(source):
            self.importance = resample(self.importance, source.boxes, visuals.boxes, source.images, visuals.images)
        kept = select(self.importance, self.guidance.num_kept(tokens))
        if len(kept) == tokens:
            return Request(prompt)
        self.kept = kept
        assert self.guidance.prune_layer is not None, "guidance is resolved when a question is opened"
        rows = keep_rows(encoded.visual_positions, kept, len(encoded.ids))
        return Request(prompt, Pruning(self.guidance.prune_layer, rows))

    def outcome(self, num_layers: int) -> Answer | EngineError:
        """Once a model has answered. num_layers: of the large model."""
        if self.error is not None:
            return self.error
        by, view = (AnsweredBy.SMALL, self.small) if self.large is None else (AnsweredBy.LARGE, self.large)
        assert view is not None and view.completion is not None
        small = self.small.completion if self.small is not None else None
        return Answer(
            text=view.completion.text,
            answered_by=by,
            finish_reason=view.completion.finish_reason,
            decision=self.decision,
            small_text=small.text if small is not None else None,
            prompt_tokens=len(view.encoded.ids),
            visual_tokens=len(view.encoded.visual_positions),
            guidance=self.guidance if self.kept is not None else None,
            kept=self.kept,
            importance=self.importance,
            token_ids=view.completion.token_ids,
            probabilities=view.completion.probabilities,
            num_layers=num_layers,
            seconds=self.seconds,
        )


class Stage(StrEnum):
    """Parts of an answer that are timed."""

    SMALL_VISION = "small vision"
    SMALL_PREFILL = "small prefill"
    SMALL_DECODE = "small decode"
    CONSISTENCY = "consistency"
    LARGE_VISION = "large vision"
    LARGE_PREFILL = "large prefill"
    LARGE_DECODE = "large decode"


@contextmanager
def timed(jobs: Sequence[Job], stage: Stage) -> Iterator[None]:
    """Note the time of a stage in each of its jobs."""
    start = time.perf_counter()
    yield
    for job in jobs:
        job.seconds[stage] = time.perf_counter() - start
