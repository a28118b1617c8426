"""A question on its way through the cascade, and what each stage adds to it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig, ScoreRows
from engine.errors import EngineError
from engine.families import Turn
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.arrays import Array, to_host
from engine.runtime.early_exit import ExitDecision, needs_consistency
from engine.runtime.generate import Completion, IsCancelled, OnText
from engine.runtime.guidance import keep_rows, random_importance, resample, score_rows, select
from engine.runtime.images import ImageSource
from engine.runtime.model import Encoded, Visuals
from engine.runtime.prompt import Pruning, Request
from engine.runtime.tome import merge


@dataclass(frozen=True)
class Question:
    """One request. None stands for the engine's defaults; on_text receives the answer piece by piece.

    history: what was asked and answered before, about the same pictures.
    """

    images: tuple[ImageSource, ...]
    text: str
    guidance: GuidanceConfig | None = None
    exit: ExitConfig | None = None
    sampling: SamplingConfig | None = None
    on_text: OnText | None = None
    is_cancelled: IsCancelled | None = None
    history: tuple[Turn, ...] = ()


@dataclass
class View:
    """What one model made of a question."""

    visuals: Visuals
    encoded: Encoded
    features: Array
    completion: Completion | None = None


@dataclass
class Job:
    """A question with its settings resolved. `small` and `large` are None until that model runs.

    small_importance: by the small model's attention, of the visual tokens of `grid`, the pictures cut up as it wants
    them. importance: what ranks the large model's tokens.
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
    small_importance: np.ndarray | None = None
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

    def guided_by(self, source: GuidanceSource) -> bool:
        return self.wants_guidance() and self.guidance.source is source

    def wants_small(self) -> bool:
        return self.guided_by(GuidanceSource.SMALL) or self.exit.enabled

    def wants_small_scores(self) -> bool:
        return self.guided_by(GuidanceSource.SMALL) or self.wants_consistency()

    def wants_consistency(self) -> bool:
        return self.exit.enabled and needs_consistency(self.exit)

    def exits_early(self) -> bool:
        return self.decision is not None and self.decision.early_exit

    def small_request(self) -> Request:
        """What the small model prefills, and which of its rows score."""
        assert self.small is not None
        encoded = self.small.encoded
        rows = score_rows(encoded.visual_positions, len(encoded.ids), self.guidance.score_rows)
        return Request(encoded.prompt(self.small.features), score_rows=rows if self.wants_small_scores() else rows[:0])

    def large_score_request(self) -> Request:
        """What the large model prefills to rank its own visual tokens."""
        assert self.large is not None and self.guidance.source.reads_large()
        encoded = self.large.encoded
        last = self.guidance.source is GuidanceSource.FASTV
        rows = ScoreRows.LAST_PROMPT if last else self.guidance.score_rows
        scored = score_rows(encoded.visual_positions, len(encoded.ids), rows)
        return Request(encoded.prompt(self.large.features), score_rows=scored)

    def large_request(self) -> Request:
        """What the large model prefills, pruned as the guidance says; settles `importance` and `kept`."""
        assert self.large is not None
        encoded = self.large.encoded
        if not self.guidance.source.reads_large():
            self.importance = self._importance_from_outside()
        tokens = len(encoded.visual_positions)
        num_kept = self.guidance.num_kept(tokens)
        if not self.wants_guidance() or num_kept == tokens:
            return Request(encoded.prompt(self.large.features))
        features = self.large.features
        if self.guidance.source is GuidanceSource.TOME:
            merged = merge(to_host(features), num_kept)
            self.kept, features = merged.kept, to_host(features).copy()
            features[self.kept] = merged.features
        else:
            assert self.importance is not None, "what guides has ranked the tokens before"
            self.kept = select(self.importance, num_kept)
        assert self.guidance.prune_layer is not None, "guidance is resolved when a question is opened"
        rows = keep_rows(encoded.visual_positions, self.kept, len(encoded.ids))
        return Request(encoded.prompt(features), Pruning(self.guidance.prune_layer, rows))

    def _importance_from_outside(self) -> np.ndarray | None:
        """[V]: what ranks the large model's visual tokens, unless it did so itself."""
        assert self.large is not None
        visuals = self.large.visuals
        if self.guided_by(GuidanceSource.RANDOM):
            return random_importance(len(visuals.boxes), self.sampling.seed)
        grid = self.grid
        if grid is None or self.small_importance is None or self.guided_by(GuidanceSource.TOME):
            return None
        if visuals.same_grid(grid):
            return self.small_importance
        return resample(self.small_importance, grid.boxes, visuals.boxes, grid.images, visuals.images)

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
            importance=self.small_importance if self.large is None else self.importance,
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
    LARGE_SCORES = "large scores"
    """The run without pruning in which the large model ranks its own visual tokens."""
    LARGE_PREFILL = "large prefill"
    LARGE_DECODE = "large decode"


@contextmanager
def fail_together(jobs: Sequence[Job]) -> Iterator[None]:
    """An error of a stage ends all of its jobs."""
    try:
        yield
    except EngineError as error:
        for job in jobs:
            job.error = job.error or error


@contextmanager
def timed(jobs: Sequence[Job], stage: Stage) -> Iterator[None]:
    """Note the time of a stage in each of its jobs."""
    start = time.perf_counter()
    yield
    for job in jobs:
        job.seconds[stage] = time.perf_counter() - start
