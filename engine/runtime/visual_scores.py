"""What the visual tokens of a batch receive: added up by the language engine, or afterwards by a scoring engine.

Shapes: B requests, R scored rows of a call, V visual tokens, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine import bindings as names
from engine.dims import Limits, Phase
from engine.runtime.arrays import Array, array_namespace, pad
from engine.runtime.executor import Executor
from engine.runtime.kv_cache import KvCache


class VisualScores(Protocol):
    """The attention that the visual tokens of a batch received so far."""

    def bind(self, requests: slice, rows: Sequence[np.ndarray], past: int) -> None:
        """Let the next run, which is of these requests, score these of its rows; `past` tokens are cached before it."""

    def bind_decode(self) -> None:
        """Let the next runs be of one row per request."""

    def step(self, active: np.ndarray, scored: np.ndarray, kv_length: np.ndarray) -> None:
        """[B] bool twice, [B]: let the next of them count these requests' rows, if they are active.

        kv_length: tokens cached after it. The run overwrites the last key of every inactive request.
        """

    def read(self, request: int) -> Array:
        """[L,V] of one request, so far, summed over heads and scored rows."""


class NoVisualScores:
    """Of an engine that emits none."""

    def bind(self, requests: slice, rows: Sequence[np.ndarray], past: int) -> None: ...

    def bind_decode(self) -> None: ...

    def step(self, active: np.ndarray, scored: np.ndarray, kv_length: np.ndarray) -> None: ...

    def read(self, request: int) -> Array:
        raise AssertionError("the engine was built without scores")


class InEngineScores:
    """The language engine adds up in place."""

    def __init__(self, engine: Executor, columns: np.ndarray, num_layers: int) -> None:
        """columns: [B,V], places of the visual tokens in the cache."""
        self._engine, self._columns = engine, columns
        self._total = engine.zeros(names.VISUAL_SCORES, (len(columns), num_layers, columns.shape[1]))

    def bind(self, requests: slice, rows: Sequence[np.ndarray], past: int) -> None:
        self._bind(requests, pad(rows, minimum=1), _weights(rows), self._columns[requests])

    def bind_decode(self) -> None:
        batch = len(self._columns)
        self._weight = np.zeros((batch, 1), np.float32)
        row = self._engine.put(names.SCORE_ROW, np.zeros((batch, 1), np.int64))
        self._bind(slice(batch), row, self._weight, self._engine.put(names.VISUAL_COLUMN, self._columns))

    def step(self, active: np.ndarray, scored: np.ndarray, kv_length: np.ndarray) -> None:
        self._weight[:, 0] = active & scored

    def read(self, request: int) -> Array:
        return self._total[request]

    def _bind(self, requests: slice, row: Array, weight: np.ndarray, columns: Array) -> None:
        total = self._total[requests]
        self._engine.bind_input(names.SCORE_ROW, row)
        self._engine.bind_input(names.SCORE_WEIGHT, weight)
        self._engine.bind_input(names.VISUAL_COLUMN, columns)
        self._engine.bind_input(names.VISUAL_SCORES, total)
        self._engine.bind_output(names.VISUAL_SCORES_OUT, total)


@dataclass(frozen=True)
class _Scored:
    """Rows of one run that wait. query [B,R,L*W]; position int32 [B,R], their places in the cache; weight [B,R]."""

    query: Array
    position: np.ndarray
    weight: np.ndarray


class DeferredScores:
    """The language engine emits the queries of scored rows; a scoring engine adds up many of them at once.

    What a rank reads of it is what that rank's own heads paid.
    """

    def __init__(
        self,
        engine: Executor,
        scoring: Executor,
        kv_cache: KvCache,
        columns: np.ndarray,
        num_layers: int,
        width: int,
        limits: Limits,
    ) -> None:
        """columns: as above; width: W, of the queries of one layer; limits: of the engines."""
        self._engine, self._scoring, self._kv_cache = engine, scoring, kv_cache
        self._columns, self._num_layers, self._width = columns, num_layers, width
        self._layers_at_once = limits.scored_layers(num_layers)
        self._limits = limits
        self._total = scoring.zeros(names.VISUAL_SCORES, (num_layers, *columns.shape))
        self._everyone = self._requests = slice(0, len(columns))
        self._waiting: list[_Scored] = []
        self._stepped: tuple[np.ndarray, np.ndarray] | None = None
        """Positions and weights of the last step, whose queries are still where the engine wrote them."""

    def bind(self, requests: slice, rows: Sequence[np.ndarray], past: int) -> None:
        self._finish()  # the run may overwrite their keys
        row, weight = pad(rows, minimum=1), _weights(rows)
        self._engine.bind_input(names.SCORE_ROW, row)
        query = self._bind_query(row.shape)
        if weight.any():
            self._requests = requests
            self._waiting.append(_Scored(query, (row + past).astype(np.int32), weight))

    def bind_decode(self) -> None:
        row = np.zeros((len(self._columns), 1), np.int64)
        self._engine.bind_input(names.SCORE_ROW, self._engine.put(names.SCORE_ROW, row))
        # One for all steps: runs with the same buffers may be recorded.
        self._query = self._bind_query(row.shape)
        self._active = np.ones(len(row), np.bool_)

    def step(self, active: np.ndarray, scored: np.ndarray, kv_length: np.ndarray) -> None:
        self._collect()
        waiting = sum(rows.weight.shape[1] for rows in self._waiting)
        ended = not np.array_equal(active, self._active)
        if ended or self._requests != self._everyone or waiting >= self._rows_at_once(self._everyone):
            self._finish()
        self._active = active.copy()
        weight = (active & scored)[:, None].astype(np.float32)
        if weight.any():
            self._stepped = kv_length[:, None] - 1, weight

    def read(self, request: int) -> Array:
        self._finish()
        return self._total[:, request]

    def _bind_query(self, rows: tuple[int, ...]) -> Array:
        query = self._engine.zeros(names.SCORED_QUERY, (*rows, self._num_layers * self._width))
        self._engine.bind_output(names.SCORED_QUERY, query)
        return query

    def _collect(self) -> None:
        """Take the last step's queries, before the next writes its own."""
        if self._stepped is not None:
            position, weight = self._stepped
            copy = array_namespace(self._query).concat([self._query])
            self._waiting.append(_Scored(copy, position, weight))
            self._stepped = None

    def _rows_at_once(self, requests: slice) -> int:
        """Of each of them."""
        is_one = requests.stop - requests.start == 1
        return self._limits.scored_rows().during(Phase.PREFILL if is_one else Phase.DECODE).max

    def _finish(self) -> None:
        """Score what waits."""
        self._collect()
        requests, waiting, self._requests, self._waiting = self._requests, self._waiting, self._everyone, []
        if not waiting:
            return
        query = array_namespace(self._total).concat([rows.query for rows in waiting], axis=1)
        position = np.concatenate([rows.position for rows in waiting], axis=1)
        weight = np.concatenate([rows.weight for rows in waiting], axis=1)
        self._bind(names.VISUAL_COLUMN, self._columns[requests])
        most = self._rows_at_once(requests)
        for start in range(0, position.shape[1], most):
            rows = slice(start, start + most)
            self._bind(names.SCORE_POSITION, position[:, rows])
            self._bind(names.SCORE_WEIGHT, weight[:, rows])
            self._score(requests, query[:, rows])
        self._scoring.release()

    def _bind(self, name: str, array: np.ndarray) -> None:
        """What all layers read."""
        self._scoring.bind_input(name, self._scoring.put(name, np.ascontiguousarray(array)))

    def _score(self, requests: slice, query: Array) -> None:
        """Add what the visual tokens of these requests receive from these rows."""
        keys, concat = self._kv_cache.keys(), array_namespace(query).concat  # which also makes contiguous
        for start in range(0, self._num_layers, self._layers_at_once):
            layers = slice(start, start + self._layers_at_once)
            part = slice(self._width * layers.start, self._width * layers.stop)
            self._scoring.bind_input(names.SCORED_QUERY, concat([query[..., part]]))
            for index, key in enumerate(keys[layers]):
                self._scoring.bind_input(names.key_cache(index), key[requests])
            total = concat([self._total[layers, requests]])
            self._scoring.bind_input(names.VISUAL_SCORES, total)
            self._scoring.bind_output(names.VISUAL_SCORES_OUT, total)
            self._scoring.run()
            self._total[layers, requests] = total


def _weights(rows: Sequence[np.ndarray]) -> np.ndarray:
    """1 for each row, 0 for padding."""
    return pad([np.ones(len(row), np.float32) for row in rows], minimum=1)
