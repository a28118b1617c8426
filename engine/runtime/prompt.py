"""What a language engine is given: tokens with their positions, which of them survive where, what is wanted of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.bindings import segment_of
from engine.runtime.arrays import Array

NO_FEATURES = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class PromptTokens:
    """One request's tokenized prompt.

    ids: int64 [S]; visual_positions: int64 [V], where the image tokens are, in order; features: [V,C]. encoded: which
    of the visual tokens have features, sorted, where not all have; the others are kept by no layer. question: the rows
    of the question as it was asked, where they are known.
    """

    ids: np.ndarray
    visual_positions: np.ndarray
    features: Array
    encoded: np.ndarray | None = None
    question: np.ndarray | None = None

    def visual(self) -> np.ndarray:
        """[S]: index of each token's visual feature, -1 for text."""
        visual = np.full(len(self.ids), -1, np.int64)
        having = self.visual_positions if self.encoded is None else self.visual_positions[self.encoded]
        visual[having] = np.arange(len(having))
        return visual

    def prefix(self) -> int:
        """Text tokens before the first visual one: no pruning changes what they compute."""
        return int(self.visual_positions[0]) if len(self.visual_positions) else len(self.ids)


@dataclass(frozen=True)
class Pruning:
    """Which rows enter layer `prune_layer` and all layers after it; sorted."""

    prune_layer: int
    rows: np.ndarray


@dataclass(frozen=True)
class Rows:
    """New tokens [S] of one slot.

    ids, positions: int64 [S]. rope_lengths: int64 [S], for each row the length of the sequence that its angles are
    scaled for, where a rotary embedding scales by it. visual: int64 [S], index into features [V,C], -1 for text.
    """

    ids: np.ndarray
    positions: np.ndarray
    rope_lengths: np.ndarray
    visual: np.ndarray
    features: Array
    pruning: Pruning | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, part: slice) -> "Rows":
        """Some of them, consecutive."""
        visual, pruning = self.visual[part], self.pruning
        start = int(visual[visual >= 0].min(initial=len(self.features)))
        stop = int(visual.max(initial=-1)) + 1
        if pruning is not None:
            inside = within(pruning.rows, part)
            pruning = Pruning(pruning.prune_layer, pruning.rows[inside] - part.start)
        return Rows(
            self.ids[part],
            self.positions[part],
            self.rope_lengths[part],
            np.where(visual < 0, -1, visual - start),
            self.features[start : max(start, stop)],
            pruning,
        )

    def then(self, text: "Rows") -> "Rows":
        """These, and rows of text behind them, of which none is pruned."""
        assert text.pruning is None and not len(text.features)
        pruning = self.pruning
        if pruning is not None:
            rows = np.concatenate([pruning.rows, len(self) + np.arange(len(text))])
            pruning = Pruning(pruning.prune_layer, rows)
        return Rows(
            np.concatenate([self.ids, text.ids]),
            np.concatenate([self.positions, text.positions]),
            np.concatenate([self.rope_lengths, text.rope_lengths]),
            np.concatenate([self.visual, text.visual]),
            self.features,
            pruning,
        )

    def next_position(self) -> int:
        """Of a token that follows them."""
        return int(np.max(self.positions[-1])) + 1

    def kept(self, prune_layers: Sequence[int]) -> list[np.ndarray]:
        """Which rows the layers of each segment see."""
        everything = np.arange(len(self))
        if self.pruning is None:
            return [everything] * (len(prune_layers) + 1)
        assert self.pruning.prune_layer in (0, *prune_layers), "pruning happens at layer 0 or at a built prune point"
        first = segment_of(self.pruning.prune_layer, prune_layers)
        return [everything if segment < first else self.pruning.rows for segment in range(len(prune_layers) + 1)]


@dataclass(frozen=True)
class Need:
    """What a slot must have room for.

    lengths: tokens in the layers of each segment. visual_columns: int64 [V], places of the visual tokens in the cache,
    if attention to them is scored.
    """

    lengths: tuple[int, ...]
    visual_columns: np.ndarray | None = None

    def num_columns(self) -> int:
        return 0 if self.visual_columns is None else len(self.visual_columns)


def prompt_rows(prompt: PromptTokens, pruning: Pruning | None = None) -> Rows:
    """A whole prompt."""
    length = len(prompt.ids)
    lengths = np.full(length, length)
    if pruning is None or pruning.prune_layer:
        return Rows(prompt.ids, np.arange(length), lengths, prompt.visual(), prompt.features, pruning)
    # What is dropped before layer 0 is not fed.
    rows = pruning.rows
    return Rows(prompt.ids[rows], rows, lengths[rows], prompt.visual()[rows], prompt.features)


def answer_rows(start: int, tokens: np.ndarray) -> Rows:
    """Tokens of an answer, the first of them at position `start`; each turns as it would if it came alone."""
    positions = start + np.arange(len(tokens))
    return Rows(tokens, positions, positions + 1, np.full(len(tokens), -1), NO_FEATURES)


@dataclass(frozen=True)
class Reread:
    """An answer read once more behind a pruned prompt: what is to follow the first `length` rows of a slot that holds
    both. wanted: int64 [G], the rows whose logits say how likely each of its tokens is.
    """

    length: int
    rows: Rows
    wanted: np.ndarray


def reread(prompt: PromptTokens, kept: np.ndarray, answer: np.ndarray) -> Reread:
    """kept: rows of the prompt, sorted, all text among them; answer: [G]. The text before the pictures stays."""
    pruned = prompt_rows(prompt, Pruning(0, kept))
    length = min(prompt.prefix(), len(pruned) - 1)
    rows = pruned.part(slice(length, len(pruned)))
    wanted = len(rows) - 1 + np.arange(len(answer))
    return Reread(length, rows.then(answer_rows(len(prompt.ids), answer[:-1])), wanted)


def within(rows: np.ndarray, part: slice) -> slice:
    """Which of these rows (sorted) lie in a part."""
    return slice(*(int(place) for place in np.searchsorted(rows, [part.start, part.stop])))
