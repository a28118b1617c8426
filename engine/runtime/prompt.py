"""What a language engine is given: tokens with their positions, which of them survive where, what is wanted of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.bindings import segment_of
from engine.model_config import AXES
from engine.runtime.arrays import Array

NO_FEATURES = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class PromptTokens:
    """One request's tokenized prompt.

    ids: int64 [S]; visual_positions: int64 [V], where the visual tokens are, in order; features: [F,C]. encoded: which
    of the visual tokens have features, sorted, where not all have; no layer sees the others. question: the rows
    of the question as it was asked, where they are known.
    places: int64 [S], or [S,3] (time, row, column) for a model that turns by three; None: each token's number.
    """

    ids: np.ndarray
    visual_positions: np.ndarray
    features: Array
    encoded: np.ndarray | None = None
    question: np.ndarray | None = None
    places: np.ndarray | None = None
    feature_positions: np.ndarray | None = None
    """int64 [F]: where the features go; some may only end a line of a picture. None: where the visual tokens are."""

    def feature_rows(self) -> np.ndarray:
        """int64 [F]: rows that are no text."""
        return self.visual_positions if self.feature_positions is None else self.feature_positions

    def visual_features(self) -> np.ndarray:
        """int64 [V]: which of the features are those of the visual tokens."""
        return np.searchsorted(self.feature_rows(), self.visual_positions)

    def positions(self) -> np.ndarray:
        """int64 [S] or [S,3], by which each token turns."""
        return np.arange(len(self.ids)) if self.places is None else self.places

    def next_position(self) -> int:
        """Of the token behind the prompt."""
        return int(self.positions().max(initial=-1)) + 1

    def visual(self) -> np.ndarray:
        """[S]: index of each token's feature, -1 for text."""
        visual = np.full(len(self.ids), -1, np.int64)
        having = self.feature_rows() if self.encoded is None else self.visual_positions[self.encoded]
        visual[having] = np.arange(len(having))
        return visual

    def readable(self) -> np.ndarray:
        """int64 [S']: the rows of text, and of visual tokens that have features; no layer sees others. Sorted."""
        if self.encoded is None:
            return np.arange(len(self.ids))
        lost = np.delete(self.visual_positions, self.encoded)
        return np.delete(np.arange(len(self.ids)), lost)

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

    ids: int64 [S]. positions: int64 [S], or [S,3] (time, row, column). rope_lengths: int64 [S], for each row the length
    of the sequence that its angles are scaled for, where a rotary embedding scales by it. visual: int64 [S], index into
    features [F,C], -1 for text.
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
        # A text's time, row and column are the same.
        positions = text.positions.reshape(len(text), *(1,) * (self.positions.ndim - 1))
        positions = np.broadcast_to(positions, (len(text), *self.positions.shape[1:]))
        return Rows(
            np.concatenate([self.ids, text.ids]),
            np.concatenate([self.positions, positions]),
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
    """A whole prompt; what no layer sees of it is not fed."""
    length, positions, rows = len(prompt.ids), prompt.positions(), prompt.readable()
    if pruning is not None and pruning.prune_layer:
        pruning = replace(pruning, rows=np.searchsorted(rows, pruning.rows))
    elif pruning is not None:
        rows, pruning = pruning.rows, None
    lengths = np.full(len(rows), length)
    return Rows(prompt.ids[rows], positions[rows], lengths, prompt.visual()[rows], prompt.features, pruning)


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
    return Reread(length, rows.then(answer_rows(prompt.next_position(), answer[:-1])), wanted)


def within(rows: np.ndarray, part: slice) -> slice:
    """Which of these rows (sorted) lie in a part."""
    return slice(*(int(place) for place in np.searchsorted(rows, [part.start, part.stop])))


def token_places(length: int, visual_positions: np.ndarray, pictures: Sequence[np.ndarray | None]) -> np.ndarray:
    """[V] and each picture's own places [V_i,3] -> int64 [S,3]: time, row and column of every token of a prompt.

    A text's three numbers are the same. What follows a picture goes on behind the largest of the picture's.
    """
    places = np.empty((length, AXES), np.int64)
    row = start = visual = 0
    for own in pictures:
        assert own is not None, "a family whose positions have three numbers gives every visual token its place"
        first = int(visual_positions[visual])
        places[row:first] = (start + np.arange(first - row))[:, None]
        start += first - row
        places[first : first + len(own)] = start + own
        row, start, visual = first + len(own), start + int(own.max()) + 1, visual + len(own)
    places[row:] = (start + np.arange(length - row))[:, None]
    return places
