"""What a question of some size does with both models, as `engine.runtime.cascade` has it done."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import ExitConfig, GuidanceConfig
from engine.dims import UNBOUNDED
from engine.model_config import LanguageConfig, ModelConfig, QwenVitConfig
from engine.parallel import Shard
from engine.runtime.language import cut
from engine.runtime.vision import PIECES_PER_CALL

BEFORE = 0.5
"""Share of a prompt's text that stands before its pictures, which the consistency pass does not read again; assumed."""


@dataclass(frozen=True)
class Run:
    """One run of an engine. rows, pairs: as in `Line`; a mean over the layers."""

    rows: float
    pairs: float = 0.0


@dataclass(frozen=True)
class Reading:
    """What one model does with a prompt. pictures: the runs that encode each; context: keys that are there when it is
    read; size: bytes of its slot.
    """

    pictures: tuple[tuple[Run, ...], ...]
    prompt: tuple[Run, ...]
    context: float
    size: int


@dataclass(frozen=True)
class Course:
    """small: None where the large model answers alone. agreement: runs of the consistency pass.

    small_tokens, large_tokens: of the answers; accepted: those of the large one's that it need not step for, as the
    small one said them.
    """

    small: Reading | None
    large: Reading
    agreement: tuple[Run, ...]
    small_tokens: int
    large_tokens: int
    accepted: int = 0


@dataclass(frozen=True)
class Size:
    """Of a question. tiles: of each of its pictures; a picture that is not cut up is one of as many pixels."""

    tiles: tuple[int, ...]
    text_tokens: int
    small_tokens: int
    large_tokens: int
    accepted: int = 0


@dataclass(frozen=True)
class Side:
    """A model as it is asked. guidance: resolved, of the large one; None keeps every visual token.

    kv_bytes: of a token in one layer. planned: whether one run encodes a whole picture.
    """

    config: ModelConfig
    kv_bytes: int
    chunk: int
    guidance: GuidanceConfig | None = None
    planned: bool = False

    def reading(self, size: Size, draft: int, most_new: int) -> Reading:
        """draft: tokens that are fed behind the prompt; most_new: tokens that the slot has room for."""
        visual = sum(self.config.tokens_of(tiles) for tiles in size.tiles)
        rows, layers = visual + size.text_tokens, self.config.language.num_layers
        below, dropped = layers, 0
        if self.guidance is not None and self.guidance.prune_layer is not None and visual:
            below, dropped = self.guidance.prune_layer, visual - self.guidance.num_kept(visual)
        # Rows that no layer computes are not fed.
        fed = rows - (dropped if below == 0 else 0)
        share = 1 - (layers - below) / layers * dropped / rows if below else 1.0
        kept = below * rows + (layers - below) * (rows - dropped)
        return Reading(
            tuple(self._pictures(size)),
            appended(fed + draft, share, self.chunk, wanted=draft + 1),
            kept / layers,
            self.kv_bytes * (kept + layers * most_new),
        )

    def _pictures(self, size: Size) -> Sequence[tuple[Run, ...]]:
        if self.planned or isinstance(self.config.vision, QwenVitConfig):
            return [(Run(tiles),) for tiles in size.tiles]
        return [(Run(PIECES_PER_CALL),) * (tiles // PIECES_PER_CALL) for tiles in size.tiles]


def kv_token_bytes(config: LanguageConfig, bits: int, shard: Shard = Shard()) -> int:  # noqa: B008 (frozen)
    """Keys and values of one token in one layer. bits: of a number."""
    return 2 * len(shard.kv_heads(config.num_kv_heads)) * config.head_dim * bits // 8


def appended(rows: int, share: float, chunk: int, wanted: int, past: float = 0.0) -> tuple[Run, ...]:
    """The runs of an `extend`. share: of the rows that a layer computes, on average; past: keys that are there."""
    runs = []
    for part in cut(range(rows), np.arange(rows - wanted, rows), np.empty(0, np.int64), chunk, UNBOUNDED):  # type: ignore[arg-type]
        count = (part.stop - part.start) * share
        runs.append(Run(count, count * past + count * (count + 1) / 2))
        past += count
    return tuple(runs)


def course(size: Size, small: Side | None, large: Side, exit: ExitConfig, most_new: int) -> Course:
    """most_new: tokens of an answer at most."""
    if small is None:
        reading = large.reading(size, 0, most_new)
        return Course(None, reading, (), 0, size.large_tokens)
    agreement: tuple[Run, ...] = ()
    if exit.enabled and exit.needs_consistency():
        visual = sum(small.config.tokens_of(tiles) for tiles in size.tiles)
        before = int(BEFORE * size.text_tokens) if visual else size.text_tokens - 1
        again = exit.num_kept(visual) + size.text_tokens - before + size.small_tokens - 1
        agreement = appended(again, 1.0, small.chunk, wanted=size.small_tokens, past=before)
    draft = min(size.small_tokens, max(size.large_tokens - 1, 0))
    return Course(
        small.reading(size, 0, most_new),
        large.reading(size, draft, most_new),
        agreement,
        size.small_tokens,
        size.large_tokens,
        min(size.accepted, draft),
    )
