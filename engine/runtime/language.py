"""A language engine at work: rows are appended to one slot, or one row to each of many.

Prefill, a chunk of one, the consistency pass and the verification of a draft are all `extend`.
Shapes: B slots of one step, S new rows of one slot, R of them wanted, V visual tokens, L layers, C hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from engine import bindings as names
from engine.dims import MAX_SCORE_ROWS, UNBOUNDED, Limits
from engine.errors import EngineError
from engine.model_config import LanguageConfig
from engine.parallel import Shard
from engine.runtime.arrays import Array
from engine.runtime.executor import Executor
from engine.runtime.prompt import Need, Rows, within
from engine.runtime.rope import RopeTable
from engine.runtime.slots import Slots
from engine.runtime.visual_scores import DeferredScores, InEngineScores, NoVisualScores, Pending, VisualScores


class Language(Protocol):
    """A language model of this process, or of several ranks; the methods are those of `LanguageModel`."""

    def nbytes(self, need: Need) -> int: ...

    def has_place(self) -> bool: ...

    def open(self, need: Need) -> int: ...

    def extend(self, slot: int, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> Array: ...

    def step(self, slots: Sequence[int], tokens: np.ndarray, scored: np.ndarray) -> Array: ...

    def visual_scores(self, slot: int) -> Array: ...

    def value_norms(self, slot: int) -> Array: ...

    def truncate(self, slot: int, length: int) -> None: ...

    def close(self, slot: int) -> None: ...

    def row_bytes(self) -> int: ...

    def save(self, slot: int, start: int, stop: int) -> int: ...

    def holds(self, saved: int) -> bool: ...

    def restore(self, slot: int, saved: int, count: int) -> None: ...

    def forget(self, saved: int) -> None: ...


@dataclass(frozen=True)
class Saved:
    """Rows of a slot: keys and values of each layer [Hkv,R,D], positions [R]."""

    rows: list[Array]
    positions: np.ndarray


class LanguageModel:
    """A loaded language engine and the slots of the questions that run on it. One call at a time."""

    def __init__(
        self,
        executor: Executor,
        config: LanguageConfig,
        prune_layers: Sequence[int] = (),
        scores: bool = False,
        shard: Shard = Shard(),  # noqa: B008 (frozen)
        limits: Limits = UNBOUNDED,
        scoring: Executor | None = None,
        places: int = 1,
    ) -> None:
        """shard: the rank whose share of the model the engine is; its logits are of that rank's vocabulary only.

        limits: of a plan; without one, buffers are as large as what runs needs. scores: whether the engine emits them;
        scoring: the engine that adds them up, None where the language engine does. places: most slots at once.
        """
        self.executor, self.config, self.shard = executor, config, shard
        self.prune_layers, self.scoring, self.places = tuple(prune_layers), scoring, places
        self._rope = RopeTable(config.rope, config.head_dim)
        self._segments = range(len(prune_layers) + 1)
        kv_heads = len(shard.kv_heads(config.num_kv_heads))
        planned = None
        if limits.planned:
            lengths = tuple(map(limits.segment_tokens, self._segments))
            planned = Need(lengths, np.zeros(limits.max_tokens, np.int64))
        self._slots = Slots(executor, config, kv_heads, prune_layers, places, planned)
        self._scores = self._make_scores(scores, limits)
        self._opened = 0
        self._saved: dict[int, Saved] = {}
        self._saves = 0
        self._step: _StepBuffers | None = None

    def nbytes(self, need: Need) -> int:
        """Memory that a slot's keys and values may take."""
        return self._slots.nbytes(need)

    def has_place(self) -> bool:
        """Whether another slot can be opened now."""
        return self._slots.has_place()

    def open(self, need: Need) -> int:
        """An empty slot with room for that; there must be a place. Raises EngineError when memory does not suffice."""
        self._opened += 1
        slot = self._slots.open(self._opened, need)
        try:
            self._scores.open(self._opened, slot)
        except Exception:
            self._slots.close(self._opened)
            raise
        return self._opened

    def extend(self, slot: int, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> Array:
        """Append rows to what a slot holds -> logits [R,vocab] of those that are wanted.

        wanted, scored: int64, sorted, among the rows; scored ones add to `visual_scores`, of a slot that is not pruned.
        Raises RuntimeError when the engine fails; the slot then holds what it held.
        """
        lease, kept = self._slots[slot], rows.kept(self.prune_layers)
        inputs, before = self._token_inputs(rows), np.arange(len(rows))
        for segment, (past, surviving) in enumerate(zip(lease.lengths, kept, strict=True)):
            # A call has at least one row; where none survives, one is computed and not kept.
            fed = surviving if len(surviving) else np.zeros(1, np.int64)
            inputs[names.past_length(segment)] = np.array([past], np.int32)
            inputs[names.kv_length(segment)] = np.array([past + len(fed)], np.int32)
            if segment:
                inputs[names.keep_index(segment)] = np.searchsorted(before, fed)[None]
            before = fed
        places = np.searchsorted(before, wanted)
        inputs[names.LOGIT_INDEX] = (places if len(wanted) else np.zeros(1, np.int64))[None]
        logits = self.executor.zeros(names.LOGITS, (1, max(1, len(wanted)), self._vocabulary()))
        self._slots.bind(self.executor, slice(lease.place, lease.place + 1))
        self._run(inputs, logits, self._scores.bind_rows(slot, scored))
        lease.append(rows.positions, kept)
        return logits[0, : len(wanted)]

    def step(self, slots: Sequence[int], tokens: np.ndarray, scored: np.ndarray) -> Array:
        """[B], [B], [B] bool -> logits [B,vocab], valid until the next step: append one token to each slot.

        scored as in `extend`. Raises RuntimeError when the engine fails; the slots then hold what they held.
        """
        if self._step is None:
            self._step = _StepBuffers(self.executor, self.config, self._segments, self.places, self._vocabulary())
        gathered = self._slots.gather(slots)
        places = np.array([self._slots[slot].place for slot in slots])
        order = np.argsort(places)
        buffers, count = self._step, len(slots)
        positions = np.array([[lease.next_position] for lease in gathered])
        cos, sin = self._rope.cos_sin(positions, positions + 1)
        inputs = buffers.fill(np.asarray(tokens)[order], cos, sin, np.array([lease.lengths for lease in gathered]))
        self._slots.bind(self.executor, slice(0, count))
        pending = self._scores.bind_step([slots[index] for index in order], np.asarray(scored)[order])
        logits = buffers.logits[:count]
        self._run(inputs, logits, pending)
        row = [np.zeros(1, np.int64)] * len(self._segments)
        for lease, position in zip(gathered, positions, strict=True):
            lease.append(position, row)
        return logits[:, 0] if np.array_equal(places, np.arange(count)) else logits[places, 0]

    def visual_scores(self, slot: int) -> Array:
        """[L,V]: attention that each visual token received so far, by layer, summed over heads and scored rows."""
        return self._scores.read(slot)

    def value_norms(self, slot: int) -> Array:
        """float32 [V]: length of each visual token's value vectors, a mean over layers and KV heads."""
        lease = self._slots[slot]
        columns = lease.need.visual_columns
        assert columns is not None, "of a slot whose visual tokens are scored"
        return self._slots.value_norms(lease.place, columns)

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` rows that were fed."""
        self._scores.finish(slot)  # while their keys are there
        self._slots[slot].truncate(length)

    def close(self, slot: int) -> None:
        self._scores.close(slot)
        self._slots.close(slot)

    def row_bytes(self) -> int:
        """Memory of a row's keys and values in all layers."""
        return self._slots.row_bytes()

    def save(self, slot: int, start: int, stop: int) -> int:
        """Copy rows of a slot, of which nothing is pruned, for other slots -> their number. Raises EngineError when
        memory does not suffice."""
        lease, self._saves = self._slots[slot], self._saves + 1
        try:
            rows = self._slots.copy_out(lease.place, start, stop)
        except (MemoryError, RuntimeError) as error:
            raise EngineError(f"{stop - start} rows of keys and values find no memory ({error}); keep fewer") from None
        self._saved[self._saves] = Saved(rows, lease.positions(start, stop).copy())
        return self._saves

    def holds(self, saved: int) -> bool:
        """Whether rows are there."""
        return saved in self._saved

    def restore(self, slot: int, saved: int, count: int) -> None:
        """Append the first `count` of rows that were saved, which stood behind the same ones."""
        lease, rows = self._slots[slot], self._saved[saved]
        self._slots.copy_in(lease.place, lease.lengths[0], rows.rows, count)
        lease.append(rows.positions[:count], [np.arange(count)] * len(self._segments))

    def forget(self, saved: int) -> None:
        del self._saved[saved]

    def _token_inputs(self, rows: Rows) -> dict[str, Any]:
        cos, sin = self._rope.cos_sin(rows.positions[None], rows.rope_lengths[None])
        features = rows.features if len(rows.features) else np.zeros((1, self.config.hidden_size), np.float32)
        return {
            names.INPUT_IDS: rows.ids[None],
            names.VISUAL_EMBEDS: features,
            names.VISUAL_SLOT: rows.visual[None],
            names.ROPE_COS: cos,
            names.ROPE_SIN: sin,
        }

    def _make_scores(self, scores: bool, limits: Limits) -> VisualScores:
        if not scores:
            return NoVisualScores()
        layers = self.config.num_layers
        if self.scoring is None:
            return InEngineScores(self.executor, self._slots, layers)
        width = names.query_width(self.config, self.shard)
        return DeferredScores(self.executor, self.scoring, self._slots, layers, width, limits)

    def _vocabulary(self) -> int:
        return len(self.shard.vocabulary(self.config.vocab_size))

    def _run(self, inputs: dict[str, Any], logits: Array, pending: Pending) -> None:
        for name, array in inputs.items():
            self.executor.bind_input(name, np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array)
        self.executor.bind_output(names.LOGITS, logits)
        try:
            self.executor.run()
        except Exception:
            pending.undo()
            raise
        pending.collect()


class _StepBuffers:
    """Inputs and logits of steps, made once for all places: runs with the same buffers may be recorded."""

    def __init__(
        self, executor: Executor, config: LanguageConfig, segments: Sequence[int], places: int, vocabulary: int
    ) -> None:
        self._segments, half = segments, config.head_dim // 2
        self._ids = np.zeros((places, 1), np.int64)
        self._cos, self._sin = (np.zeros((places, 1, half), np.float32) for _ in range(2))
        self._past, self._length = (np.zeros((len(segments), places), np.int32) for _ in range(2))
        nothing = {
            names.VISUAL_SLOT: np.full((places, 1), -1),
            names.LOGIT_INDEX: np.zeros((places, 1), np.int64),
            **{names.keep_index(segment): np.zeros((places, 1), np.int64) for segment in segments[1:]},
        }
        self._fixed = {name: executor.put(name, array) for name, array in nothing.items()}
        features = np.zeros((1, config.hidden_size), np.float32)
        self._features = executor.put(names.VISUAL_EMBEDS, features)
        self.logits = executor.zeros(names.LOGITS, (places, 1, vocabulary))

    def fill(self, tokens: np.ndarray, cos: np.ndarray, sin: np.ndarray, lengths: np.ndarray) -> dict[str, Array]:
        """[B], [B,1,D/2] twice, [B,segments] -> all inputs, by name."""
        count = len(tokens)
        self._ids[:count, 0] = tokens
        self._cos[:count], self._sin[:count] = cos, sin
        self._past[:, :count] = lengths.T
        self._length[:, :count] = lengths.T + 1
        changing = {names.INPUT_IDS: self._ids, names.ROPE_COS: self._cos, names.ROPE_SIN: self._sin}
        changing |= {names.past_length(segment): self._past[segment] for segment in self._segments}
        changing |= {names.kv_length(segment): self._length[segment] for segment in self._segments}
        batched: dict[str, Array] = changing | self._fixed
        return {names.VISUAL_EMBEDS: self._features} | {name: array[:count] for name, array in batched.items()}


def cut(rows: Rows, wanted: np.ndarray, scored: np.ndarray, chunk: int, limits: Limits) -> list[slice]:
    """Consecutive parts of some rows that are to be fed one after another, each of at most `chunk`.

    Where they are cut depends on these rows alone, so that nothing else changes what they compute.
    """
    stops = {0, len(rows), *range(chunk, len(rows), chunk)}
    most_scored = min(MAX_SCORE_ROWS, limits.score_rows().max)
    for counted, most in ((scored, most_scored), (wanted, limits.logit_rows().max)):
        start = 0
        for stop in sorted(stops - {0}):
            inside = counted[within(counted, slice(start, stop))]
            stops |= {int(row) for row in inside[most::most]}
            start = stop
    return [slice(start, stop) for start, stop in pairwise(sorted(stops))]
