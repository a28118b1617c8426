"""Which visual tokens the large model keeps: ranked, chosen, and its prompt without the others.

Shapes: V visual tokens of the large model, N of them that are kept.
"""

from dataclasses import dataclass, replace

import numpy as np

from engine.config import GuidanceConfig, GuidanceSource, ScoreRows, num_kept
from engine.runtime.arrays import to_host
from engine.runtime.grid import Grid
from engine.runtime.guidance import (
    Budget,
    count_kept,
    fastv_importance,
    keep_rows,
    random_importance,
    resample,
    select,
    select_by_frame,
)
from engine.runtime.prompt import PromptTokens, Pruning, Rows, prompt_rows
from engine.runtime.question import Settings, Stage
from engine.runtime.speaker import Scored, Speaker
from engine.runtime.tome import merge
from engine.runtime.work import NONE, Asking, Extend


@dataclass(frozen=True)
class Choice:
    """What is kept. importance [V]: what ranked the tokens, if anything did; kept [N]: None is all; budget: why so
    many, None like `kept`."""

    importance: np.ndarray | None = None
    kept: np.ndarray | None = None
    budget: Budget | None = None

    def needed(self, guidance: GuidanceConfig) -> np.ndarray | None:
        """int64, sorted: the tokens whose tiles are to be encoded; None is all."""
        if not guidance.prune_layer or self.kept is None:
            return self.kept
        if guidance.tile_retention is None or self.importance is None:
            return None
        important = select(self.importance, num_kept(len(self.importance), guidance.tile_retention))
        return np.union1d(self.kept, important)


def rank(settings: Settings, grid: Grid, known: Grid | None, scores: np.ndarray | None) -> np.ndarray | None:
    """float32 [V]: what ranks the tokens of `grid` before the large model runs; None if nothing does.

    known, scores: the small model's grid, and the importance of its tokens.
    """
    if settings.guided_by(GuidanceSource.RANDOM):
        return random_importance(len(grid.boxes), settings.sampling.seed)
    if known is None or scores is None or settings.guided_by(GuidanceSource.TOME):
        return None
    return scores if grid.same(known) else resample(scores, known, grid)


def rank_by_itself(speaker: Speaker, prompt: PromptTokens) -> Asking[np.ndarray]:
    """float32 [V]: how the large model ranks its own visual tokens, in a run that keeps them all."""
    guidance, rows = speaker.settings.guidance, prompt_rows(prompt)
    own = replace(speaker, stages=(Stage.LARGE_SCORES, Stage.LARGE_SCORES))
    with (yield from own.open(rows, wants_scores=True)) as slot:
        if guidance.source is GuidanceSource.ORACLE:
            yield from own.speak(slot, rows, Scored.of(prompt, guidance.score_rows))
            with speaker.watch(Stage.LARGE_SCORES):
                return own.importance(slot)
        scored = Scored.of(prompt, ScoreRows.LAST_PROMPT).prompt
        with speaker.watch(Stage.LARGE_SCORES):
            yield Extend(speaker.model, slot, rows, NONE, lambda logits: logits, scored)
            assert guidance.prune_layer, "fastv without a layer before prune_layer is refused"
            return fastv_importance(speaker.model.language.visual_scores(slot), guidance.prune_layer)


def choose(settings: Settings, ranking: np.ndarray | None, grid: Grid) -> Choice:
    """Of ranked tokens, which lie on this grid. What TOME keeps it chooses by features: `merged`."""
    if not settings.wants_guidance() or settings.guided_by(GuidanceSource.TOME):
        return Choice(ranking)
    assert ranking is not None, "what guides has ranked the tokens before"
    count, budget = count_kept(ranking, settings.guidance)
    if count >= len(ranking):
        return Choice(ranking)
    by_frame = settings.guidance.per_frame_quota
    kept = select_by_frame(ranking, count, grid.frames()) if by_frame else select(ranking, count)
    return Choice(ranking, kept, budget)


def merged(guidance: GuidanceConfig, prompt: PromptTokens) -> tuple[PromptTokens, Choice]:
    """A prompt whose visual tokens are merged into those that are kept."""
    tokens = len(prompt.visual_positions)
    count = guidance.num_kept(tokens)
    if count == tokens:
        return prompt, Choice()
    visual, features = prompt.visual_features(), to_host(prompt.features).copy()
    found = merge(features[visual], count)
    features[visual[found.kept]] = found.features
    return replace(prompt, features=features), Choice(None, found.kept, Budget.RATIO)


def pruned_rows(prompt: PromptTokens, guidance: GuidanceConfig, choice: Choice) -> Rows:
    """What the large model reads."""
    if choice.kept is None:
        return prompt_rows(prompt)
    assert guidance.prune_layer is not None, "guidance is resolved when a question is opened"
    rows = keep_rows(prompt.visual_positions, choice.kept, len(prompt.ids))
    return prompt_rows(prompt, Pruning(guidance.prune_layer, rows))
