"""A model on several ranks, behind the same interfaces as one in this process."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.bindings import segment_of
from engine.dims import Limits
from engine.manifest import Manifest
from engine.model_config import VisionConfig
from engine.parallel import SHARDED, Shard
from engine.runtime.prompt import Need, Rows
from engine.runtime.tensor_parallel import (
    CloseSlot,
    Encode,
    Extend,
    ForgetRows,
    Message,
    OpenSlot,
    Ranks,
    RanksDiedError,
    ReadVisualScores,
    RestoreRows,
    SaveRows,
    Step,
    Truncate,
    ValueNorms,
    rank_device,
)
from engine.runtime.vision import pieces_per_call
from engine.target import Device

FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class ShardedLanguage:
    """Like `LanguageModel`; slots stay with the ranks, and end with them."""

    def __init__(self, ranks: Ranks, manifest: Manifest, places: int) -> None:
        self._ranks, self._places = ranks, places
        self._epochs: dict[int, int] = {}
        """Of each open slot: of the ranks that have it."""
        self._saved: dict[int, int] = {}
        """The same of rows that were saved."""
        self._token_bytes, limits = token_bytes(manifest), manifest.limits(SHARDED)
        planned = tuple(limits.segment_tokens(segment) for segment in range(len(self._token_bytes)))
        self._planned = planned if limits.planned else None

    def nbytes(self, need: Need) -> int:
        """Of a rank on its GPU; on CPUs, of all ranks, as if they shared one memory."""
        lengths = self._planned or need.lengths
        return sum(length * size for length, size in zip(lengths, self._token_bytes, strict=True))

    def has_place(self) -> bool:
        return sum(epoch == self._ranks.epoch for epoch in self._epochs.values()) < self._places

    def open(self, need: Need) -> int:
        slot: int = self._ranks.do(OpenSlot(need))
        self._epochs[slot] = self._ranks.epoch
        return slot

    def extend(self, slot: int, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return self._on([slot], Extend(slot, rows, wanted, scored))

    def step(self, slots: Sequence[int], tokens: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return self._on(slots, Step(tuple(slots), tokens, scored))

    def visual_scores(self, slot: int) -> np.ndarray:
        return self._on([slot], ReadVisualScores(slot))

    def value_norms(self, slot: int) -> np.ndarray:
        norms: np.ndarray = self._on([slot], ValueNorms(slot))
        return norms

    def truncate(self, slot: int, length: int) -> None:
        self._on([slot], Truncate(slot, length))

    def close(self, slot: int) -> None:
        if self._epochs.pop(slot) == self._ranks.epoch:
            self._ranks.do(CloseSlot(slot))

    def row_bytes(self) -> int:
        """As `nbytes`."""
        return sum(self._token_bytes)

    def save(self, slot: int, start: int, stop: int) -> int:
        saved: int = self._on([slot], SaveRows(slot, start, stop))
        self._saved[saved] = self._ranks.epoch
        return saved

    def holds(self, saved: int) -> bool:
        return self._saved.get(saved) == self._ranks.epoch

    def restore(self, slot: int, saved: int, count: int) -> None:
        self._on([slot], RestoreRows(slot, saved, count))

    def forget(self, saved: int) -> None:
        if self._saved.pop(saved) == self._ranks.epoch:
            self._ranks.do(ForgetRows(saved))

    def _on(self, slots: Sequence[int], message: Message) -> Any:
        """Raises RanksDiedError for a slot of ranks that are gone."""
        if any(self._epochs[slot] != self._ranks.epoch for slot in slots):
            raise RanksDiedError(self._ranks.death)
        return self._ranks.do(message)


def token_bytes(manifest: Manifest) -> tuple[int, ...]:
    """Of a token's keys and values in the layers of each segment; see `ShardedLanguage.nbytes`."""
    model, world_size = manifest.models[SHARDED], manifest.world_size
    config = model.config.language
    heads = len(Shard(0, world_size).kv_heads(config.num_kv_heads))
    layer_bytes = 2 * heads * config.head_dim * FLOAT_BYTES[manifest.target.activations(manifest.precision)]
    layers = Counter(segment_of(layer, model.prune_layers) for layer in range(config.num_layers))
    sharing = world_size if rank_device(manifest) is Device.CPU else 1
    return tuple(layers[segment] * layer_bytes * sharing for segment in range(len(model.prune_layers) + 1))


class ShardedVision:
    """A vision encoder whose pieces are shared out among the ranks, each of which holds it whole."""

    def __init__(self, ranks: Ranks, config: VisionConfig, limits: Limits, world_size: int) -> None:
        self._ranks = ranks
        self.pieces_per_call = world_size * pieces_per_call(config, limits)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Like `VisionEncoder.encode`."""
        features: np.ndarray = self._ranks.do(Encode(pixels))
        return features
