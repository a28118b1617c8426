"""What a language engine is given: a tokenized prompt, which of its rows survive, and which are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.bindings import segment_of
from engine.runtime.arrays import Array


@dataclass(frozen=True)
class PromptTokens:
    """One request's tokenized prompt.

    ids: int64 [S]; visual_positions: int64 [V], where the image tokens are, in order; features: [V,C].
    """

    ids: np.ndarray
    visual_positions: np.ndarray
    features: Array

    def slots(self) -> np.ndarray:
        """[S]: index of each token's visual feature, -1 for text."""
        slots = np.full(len(self.ids), -1, np.int64)
        slots[self.visual_positions] = np.arange(len(self.visual_positions))
        return slots

    def prefix(self) -> int:
        """Text tokens before the first visual one: no pruning changes what they compute."""
        return int(self.visual_positions[0]) if len(self.visual_positions) else len(self.ids)


@dataclass(frozen=True)
class Pruning:
    """Which rows of a prompt enter layer `prune_layer` and all layers after it; sorted."""

    prune_layer: int
    rows: np.ndarray


@dataclass(frozen=True)
class Request:
    """What a prefill does for one prompt.

    score_rows: prompt rows whose attention to visual tokens is summed; none in a pruned run.
    """

    prompt: PromptTokens
    pruning: Pruning | None = None
    score_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        assert self.pruning is None or not len(self.score_rows), "dropped tokens have no column to score"

    def score_columns(self) -> np.ndarray:
        """[V]: places of the visual tokens in every layer's cache; of a pruned run, any place that exists."""
        positions = self.prompt.visual_positions
        return positions if self.pruning is None else np.zeros_like(positions)


@dataclass(frozen=True)
class NewRows:
    """New tokens of one request in one call, with their original positions."""

    ids: np.ndarray
    slots: np.ndarray
    positions: np.ndarray


def segment_rows(request: Request, prune_layers: Sequence[int]) -> list[np.ndarray]:
    """Rows of the prompt that the layers of each segment see."""
    everything = np.arange(len(request.prompt.ids))
    if request.pruning is None:
        return [everything] * (len(prune_layers) + 1)
    first = segment_of(request.pruning.prune_layer, prune_layers)
    assert request.pruning.prune_layer in (0, *prune_layers), "pruning happens at layer 0 or at a built prune point"
    return [everything if segment < first else request.pruning.rows for segment in range(len(prune_layers) + 1)]
