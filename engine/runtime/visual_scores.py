"""What visual tokens receive: added up by the language engine, or afterwards by a scoring engine.

Shapes: B slots of one step, R scored rows of a call, V visual tokens, L layers, W query width of a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine import bindings as names
from engine.dims import SCORED_AT_ONCE, Limits
from engine.runtime.arrays import Array, array_namespace, concat
from engine.runtime.executor import Executor
from engine.runtime.slots import Shared, Slot, Slots


def _nothing() -> None: ...


@dataclass(frozen=True)
class Pending:
    """A run that scores rows. One of the two is called after it.

    collect: it went well, and the next one overwrites what it wrote; undo: it failed, and may be tried again.
    """

    collect: Callable[[], None] = _nothing
    undo: Callable[[], None] = _nothing


class VisualScores(Protocol):
    """The attention that the visual tokens of each slot received so far."""

    def open(self, number: int, slot: Slot) -> None:
        """Start a slot at zero."""

    def close(self, number: int) -> None: ...

    def bind_rows(self, number: int, rows: np.ndarray) -> Pending:
        """Let the next run, which appends to this slot, score these of its rows."""

    def bind_step(self, numbers: Sequence[int], scored: np.ndarray) -> Pending:
        """Let the next run, of one row of each of these slots (by place), score those of `scored` [B] bool."""

    def finish(self, number: int) -> None:
        """Before keys of a slot are overwritten."""

    def read(self, number: int) -> Array:
        """[L,V] so far, summed over heads and scored rows."""


class NoVisualScores:
    """Of an engine that emits none."""

    def open(self, number: int, slot: Slot) -> None: ...

    def close(self, number: int) -> None: ...

    def bind_rows(self, number: int, rows: np.ndarray) -> Pending:
        return Pending()

    def bind_step(self, numbers: Sequence[int], scored: np.ndarray) -> Pending:
        return Pending()

    def finish(self, number: int) -> None: ...

    def read(self, number: int) -> Array:
        raise AssertionError("the engine was built without scores")


class InEngineScores:
    """The language engine adds up in place."""

    def __init__(self, engine: Executor, slots: Slots, num_layers: int) -> None:
        self._engine, self._slots = engine, slots
        places = slots.places
        self._total = slots.share(
            Shared(
                names.VISUAL_SCORES,
                lambda size: (places, num_layers, size),
                lambda need: need.num_columns(),
                lambda slot: slot.need.num_columns(),
            )
        )
        self._columns = np.zeros((places, 1), np.int64)
        self._weight = np.zeros((places, 1), np.float32)
        self._row = engine.put(names.SCORE_ROW, np.zeros((places, 1), np.int64))

    def open(self, number: int, slot: Slot) -> None: ...

    def close(self, number: int) -> None: ...

    def bind_rows(self, number: int, rows: np.ndarray) -> Pending:
        slot = self._slots[number]
        padded = rows if len(rows) else np.zeros(1, np.int64)
        weight = np.full((1, len(padded)), bool(len(rows)), np.float32)
        return self._bind(slice(slot.place, slot.place + 1), [slot], padded[None], weight)

    def bind_step(self, numbers: Sequence[int], scored: np.ndarray) -> Pending:
        places = slice(0, len(numbers))
        self._weight[places, 0] = scored
        slots = [self._slots[number] for number in numbers]
        return self._bind(places, slots, self._row[places], self._weight[places])

    def finish(self, number: int) -> None: ...

    def read(self, number: int) -> Array:
        slot = self._slots[number]
        return self._total.array[slot.place, :, : slot.need.num_columns()]

    def _bind(self, places: slice, slots: Sequence[Slot], row: Array, weight: np.ndarray) -> Pending:
        total = self._total.array[places]
        columns = np.zeros((len(slots), total.shape[2]), np.int64)
        for target, slot in zip(columns, slots, strict=True):
            if slot.need.visual_columns is not None:
                target[: slot.need.num_columns()] = slot.need.visual_columns
        self._engine.bind_input(names.SCORE_ROW, row)
        self._engine.bind_input(names.SCORE_WEIGHT, weight)
        self._engine.bind_input(names.VISUAL_COLUMN, columns)
        self._engine.bind_input(names.VISUAL_SCORES, total)
        self._engine.bind_output(names.VISUAL_SCORES_OUT, total)
        if not weight.any():
            return Pending()
        held = concat([total])

        def undo() -> None:
            total[...] = held

        return Pending(undo=undo)


@dataclass
class _Waiting:
    """Of one slot. total [L,1,V]; queries [1,R,L*W] and their places in the cache, of rows that are not in it yet."""

    total: Array
    queries: list[Array] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class DeferredScores:
    """The language engine emits the queries of scored rows; a scoring engine adds up those of a slot, many at once.

    A slot's rows are added up in an order that depends on no other slot. What a rank reads of it is what its own heads
    paid.
    """

    def __init__(
        self, engine: Executor, scoring: Executor, slots: Slots, num_layers: int, width: int, limits: Limits
    ) -> None:
        """width: W; limits: of the engines."""
        self._engine, self._scoring, self._slots = engine, scoring, slots
        self._num_layers, self._width = num_layers, width
        self._layers_at_once = limits.scored_layers(num_layers)
        self._waiting: dict[int, _Waiting] = {}
        self._row = engine.put(names.SCORE_ROW, np.zeros((slots.places, 1), np.int64))
        self._query: Array = None

    def open(self, number: int, slot: Slot) -> None:
        if slot.need.visual_columns is not None:
            total = self._scoring.zeros(names.VISUAL_SCORES, (self._num_layers, 1, max(1, slot.need.num_columns())))
            self._waiting[number] = _Waiting(total)

    def close(self, number: int) -> None:
        self._waiting.pop(number, None)

    def bind_rows(self, number: int, rows: np.ndarray) -> Pending:
        self.finish(number, SCORED_AT_ONCE)
        padded = rows if len(rows) else np.zeros(1, np.int64)
        query = self._engine.zeros(names.SCORED_QUERY, (1, len(padded), self._num_layers * self._width))
        self._engine.bind_input(names.SCORE_ROW, padded[None])
        self._engine.bind_output(names.SCORED_QUERY, query)
        past = self._slots[number].lengths[0]
        return self._pending([(number, query, [past + int(row) for row in rows])] if len(rows) else [])

    def bind_step(self, numbers: Sequence[int], scored: np.ndarray) -> Pending:
        if self._query is None:
            # One for all steps: runs with the same buffers may be recorded.
            shape = self._slots.places, 1, self._num_layers * self._width
            self._query = self._engine.zeros(names.SCORED_QUERY, shape)
        for number in numbers:
            self.finish(number, SCORED_AT_ONCE)
        self._engine.bind_input(names.SCORE_ROW, self._row[: len(numbers)])
        self._engine.bind_output(names.SCORED_QUERY, self._query[: len(numbers)])
        return self._pending(
            [
                (number, self._query[place : place + 1], [self._slots[number].lengths[0]])
                for place, (number, counts) in enumerate(zip(numbers, scored, strict=True))
                if counts
            ]
        )

    def finish(self, number: int, at_least: int = 1) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or len(waiting.positions) < at_least:
            return
        query = array_namespace(waiting.total).concat(waiting.queries, axis=1)
        position = np.array([waiting.positions], np.int32)
        slot = self._slots[number]
        # A copy, so that a run that fails and is tried again counts nothing twice.
        total = concat([waiting.total])
        self._bind(names.VISUAL_COLUMN, _at_least_one(slot.need.visual_columns)[None])
        for start in range(0, position.shape[1], SCORED_AT_ONCE):
            rows = slice(start, start + SCORED_AT_ONCE)
            self._bind(names.SCORE_POSITION, position[:, rows])
            self._bind(names.SCORE_WEIGHT, np.ones_like(position[:, rows], np.float32))
            self._score(slot, query[:, rows], total)
        self._scoring.release()
        waiting.total, waiting.queries, waiting.positions = total, [], []

    def read(self, number: int) -> Array:
        self.finish(number)
        waiting, columns = self._waiting[number], self._slots[number].need.num_columns()
        return waiting.total[:, 0, :columns]

    def _pending(self, written: Sequence[tuple[int, Array, list[int]]]) -> Pending:
        """written: by slot, queries [1,R,L*W] of its scored rows and their places in the cache."""

        def collect() -> None:
            for number, query, positions in written:
                self._waiting[number].queries.append(concat([query]))
                self._waiting[number].positions += positions

        return Pending(collect)

    def _bind(self, name: str, array: np.ndarray) -> None:
        """What all layers read."""
        self._scoring.bind_input(name, self._scoring.put(name, np.ascontiguousarray(array)))

    def _score(self, slot: Slot, query: Array, total: Array) -> None:
        """Add what the visual tokens receive from these rows."""
        keys = self._slots.keys(slot.place)
        for start in range(0, self._num_layers, self._layers_at_once):
            layers = slice(start, start + self._layers_at_once)
            part = slice(self._width * layers.start, self._width * layers.stop)
            self._scoring.bind_input(names.SCORED_QUERY, concat([query[..., part]]))  # contiguous
            for index, key in enumerate(keys[layers]):
                self._scoring.bind_input(names.key_cache(index), key)
            self._scoring.bind_input(names.VISUAL_SCORES, total[layers])
            self._scoring.bind_output(names.VISUAL_SCORES_OUT, total[layers])
            self._scoring.run()


def _at_least_one(columns: np.ndarray | None) -> np.ndarray:
    return columns if columns is not None and len(columns) else np.zeros(1, np.int64)
