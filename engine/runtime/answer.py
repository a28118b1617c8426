"""What a question comes back as."""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from engine.config import GuidanceConfig
from engine.runtime.clips import Shown
from engine.runtime.early_exit import ExitDecision
from engine.runtime.guidance import Budget
from engine.runtime.question import Reuse
from engine.runtime.sampling import TopToken
from engine.runtime.utterance import FinishReason


class AnsweredBy(StrEnum):
    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Answer:
    """The answer to one question, and how it came about."""

    text: str
    answered_by: AnsweredBy
    finish_reason: FinishReason
    decision: ExitDecision | None
    """None when early exit was off."""
    small_text: str | None
    """What the small model said, also when the large one answered; None when it did not run."""
    prompt_tokens: int
    visual_tokens: int
    """Of the model that answered."""
    tiles: int
    """That the vision encoder of the model that answered takes its pictures in."""
    tiles_skipped: int
    """Those of them that it was never shown: nothing of them was to be seen by any layer."""
    guidance: GuidanceConfig | None
    """Where and how far the large model pruned; None when it kept everything or did not run."""
    kept: np.ndarray | None
    """int64 [N]: the visual tokens that survived `guidance.prune_layer`, sorted; None like `guidance`."""
    budget: Budget | None
    """Why so many; None like `guidance`."""
    importance: np.ndarray | None
    """float32 [V], on the grid of the model that answered; None when nothing ranked the tokens."""
    boxes: np.ndarray
    """float32 [V,4], x0 y0 x1 y1 of each visual token in its picture, whose sides are 1."""
    images: np.ndarray
    """int64 [V], which picture or clip each is of, counted pictures first."""
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    """Of each token at temperature 1, the one that ended the answer included."""
    top: tuple[tuple[TopToken, ...], ...]
    """Of each token, the most probable ones in its place; none unless they were asked for."""
    drafted: int
    """Tokens of the small model that the large one was shown before it said them."""
    accepted: int
    """Those of them, from the first of each draft, that it would have said: so many steps were saved."""
    speculated: int
    """Those that were drafted from what the large model had said; the others are of the small one's own answer."""
    speculated_accepted: int
    num_layers: int
    """Of the large model."""
    seconds: dict[str, float]
    """Stage -> seconds from its start to its end, in the order in which the stages ran."""
    engine_seconds: dict[str, float]
    """Stage -> seconds of the engines; those of a run for several questions are shared out among them."""
    reuse: Reuse
    times: np.ndarray | None = None
    """float64 [V,2], from when to when each is in its clip, which lasts 1; a still picture's are 0 and 1. None: there
    are no clips."""
    clips: tuple[Shown, ...] = ()
    """Which frames of each clip the model that answered was shown."""

    @property
    def early_exit(self) -> bool:
        return self.decision is not None and self.decision.early_exit

    def retention_ratio(self) -> float | None:
        """The fraction that was to be kept of every question; None where something else says how many."""
        return self.guidance.retention_ratio if self.guidance is not None and self.budget is Budget.RATIO else None

    def num_kept(self) -> int:
        """Visual tokens that the model used to the end."""
        return self.visual_tokens if self.kept is None else len(self.kept)

    def frames_kept(self, clip: int) -> list[int]:
        """Of each frame of a clip, or each group of frames that became tokens together, the visual tokens that were
        kept."""
        assert self.times is not None, "a question with clips has times"
        mine = np.flatnonzero(self.images == self.images.max() + 1 - len(self.clips) + clip)
        frame = np.unique(self.times[mine], axis=0, return_inverse=True)[1].reshape(-1)
        is_kept = np.ones(len(mine), bool) if self.kept is None else np.isin(mine, self.kept)
        return list(np.bincount(frame[is_kept], minlength=int(frame.max()) + 1).tolist())

    def average_retention(self) -> float:
        """Share of visual tokens over the layers of the model that answered."""
        if self.guidance is None or self.kept is None:
            return 1.0
        # What was kept, not the ratio that was asked for: counts are whole and at least 1.
        kept = replace(self.guidance, retention_ratio=len(self.kept) / self.visual_tokens)
        # Tiles that can be skipped are as large as each other.
        return kept.average(self.num_layers, seen=1 - self.tiles_skipped / self.tiles)
