"""A language engine at work: prefill (pruned or scored), decode, and the parallel scoring pass of SEE.

Shapes: B requests, S new tokens, V visual tokens, L layers, C hidden size.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from engine import bindings as names
from engine.dims import UNBOUNDED, Limits
from engine.model_config import LanguageConfig
from engine.parallel import Mapping
from engine.runtime.arrays import Array, concat, pad
from engine.runtime.executor import Executor
from engine.runtime.kv_cache import KvCache
from engine.runtime.prompt import NewRows, Request, segment_rows
from engine.runtime.rope import RopeTable
from engine.runtime.visual_scores import DeferredScores, InEngineScores, NoVisualScores, VisualScores


class Prefilled(Protocol):
    """A batch whose prompts have run, wherever its model is; the methods are those of `Generation`."""

    logits: Array

    def visual_scores(self, request: int) -> Array: ...

    def decode(self, tokens: np.ndarray, active: np.ndarray, scored: np.ndarray) -> Array: ...

    def score(self, request: int, visual_kept: np.ndarray, answer: np.ndarray) -> Array: ...


class Language(Protocol):
    """A language model of this process, or of several ranks."""

    def prefill(self, requests: Sequence[Request], max_new_tokens: int) -> Prefilled: ...


class LanguageModel:
    """A loaded language engine. One `Generation` at a time runs on it."""

    def __init__(
        self,
        executor: Executor,
        config: LanguageConfig,
        prune_layers: Sequence[int] = (),
        scores: bool = False,
        mapping: Mapping = Mapping(),  # noqa: B008 (frozen)
        limits: Limits = UNBOUNDED,
        scoring: Executor | None = None,
    ) -> None:
        """mapping: the rank whose share of the model the engine is; its logits are of that rank's vocabulary only.

        limits: of a plan; without one, buffers are as large as a call needs. scores: whether the engine emits them;
        scoring: the engine that adds them up, None where the language engine does.
        """
        self.executor, self.config, self.mapping, self.limits = executor, config, mapping, limits
        self.prune_layers, self.scores, self.scoring = tuple(prune_layers), scores, scoring
        self.rope = RopeTable(config.rope, config.head_dim)

    def prefill(self, requests: Sequence[Request], max_new_tokens: int) -> "Generation":
        """Run the prompts of a batch and keep what decoding needs."""
        return Generation(self, requests, max_new_tokens)


class Generation:
    """A batch of requests in progress. `logits` [B,vocab] are of each request's last token."""

    def __init__(self, model: LanguageModel, requests: Sequence[Request], max_new_tokens: int) -> None:
        self._model, self._requests, self._executor = model, requests, model.executor
        self._executor.release()  # the caches of two batches never exist at once
        batch, segments = len(requests), len(model.prune_layers) + 1
        kept = [segment_rows(request, model.prune_layers) for request in requests]
        sizes = [max(len(rows[segment]) for rows in kept) + max_new_tokens for segment in range(segments)]
        if model.limits.planned:
            sizes = [model.limits.segment_tokens(segment) for segment in range(segments)]
        kv_heads = len(model.mapping.kv_heads(model.config.num_kv_heads))
        self.kv_cache = KvCache(self._executor, model.config, kv_heads, model.prune_layers, batch, sizes)
        self._positions = np.array([len(request.prompt.ids) for request in requests])
        self._is_whole = np.array([request.pruning is None for request in requests])
        self._scores = self._make_scores()
        logits = self._executor.zeros(names.LOGITS, (batch, 1, self._vocabulary()))
        # The rows of a planned call are as many for each of its requests, so prompts take turns.
        turns = [slice(i, i + 1) for i in range(batch)] if model.limits.planned else [slice(0, batch)]
        for turn in turns:
            self._prefill(turn, kept[turn], logits[turn])
        self.logits = logits[:, 0]
        self._decode_inputs: dict[str, np.ndarray] | None = None

    def visual_scores(self, request: int) -> Array:
        """[L,V]: attention that each visual token received so far, by layer, summed over heads and scored rows."""
        return self._scores.read(request)[:, : len(self._requests[request].prompt.visual_positions)]

    def decode(self, tokens: np.ndarray, active: np.ndarray, scored: np.ndarray) -> Array:
        """[B], [B] bool, [B] bool -> logits [B,vocab]: feed one token per request.

        An inactive request's token is ignored and its logits are unspecified; `scored` rows add to `visual_scores`,
        unless their request is pruned.
        """
        if self._decode_inputs is None:
            self._decode_inputs = self._bind_decode()
        inputs = self._decode_inputs
        for segment, length in enumerate(self.kv_cache.lengths):
            inputs[names.past_length(segment)][:] = length
            length += active
        self._positions += active
        position = self._positions[:, None] - 1
        inputs[names.INPUT_IDS][:, 0] = tokens
        cos, sin = self._model.rope.cos_sin(position, self._positions)
        inputs[names.ROPE_COS][:], inputs[names.ROPE_SIN][:] = cos, sin
        self._scores.step(active, scored & self._is_whole, self.kv_cache.lengths[0])
        self._executor.run()
        return self._decode_logits[:, 0]

    def score(self, request: int, visual_kept: np.ndarray, answer: np.ndarray) -> Array:
        """[N], [G] -> logits [G,vocab] of each answer token when only these visual tokens are fed (SEE, eq. 8).

        One parallel pass that reuses the cached prefix and overwrites the rest of the request's cache: the last thing
        to do with a request. visual_kept: indices among its visual tokens, sorted.
        """
        prompt = self._requests[request].prompt
        prefix, slots = prompt.prefix(), prompt.slots()
        keep = (slots < 0) | np.isin(slots, visual_kept)
        rows = np.flatnonzero(keep[prefix:]) + prefix
        if not len(rows):
            prefix, rows = len(prompt.ids) - 1, np.array([len(prompt.ids) - 1])
        fed = answer[:-1]
        new = NewRows(
            np.concatenate([prompt.ids[rows], fed]),
            np.concatenate([slots[rows], np.full(len(fed), -1)]),
            np.concatenate([rows, len(prompt.ids) + np.arange(len(fed))]),
        )
        wanted = np.arange(len(rows) - 1, len(new.ids))
        logits = self._executor.zeros(names.LOGITS, (1, len(wanted), self._vocabulary()))
        this = slice(request, request + 1)
        self._decode_inputs = None
        self.kv_cache.bind(self._executor, this)
        for part in _cut(len(new.ids), wanted, self._model.limits.logit_rows().max):
            inside = _within(wanted, part)
            inputs = self._token_inputs([new], [prompt.features], part)
            past, length = (np.array([prefix + place], np.int32) for place in (part.start, part.stop))
            for segment in range(len(self.kv_cache.lengths)):
                inputs |= {names.past_length(segment): past, names.kv_length(segment): length}
            inputs |= self._identity_inputs(1, part.stop - part.start)
            inputs[names.LOGIT_INDEX] = (wanted[inside] - part.start)[None]
            self._scores.bind(this, [np.empty(0, np.int64)], prefix + part.start)
            self._bind(inputs, logits[:, inside])
            self._executor.run()
        return logits[0]

    def _prefill(self, turn: slice, kept: list[list[np.ndarray]], logits: Array) -> None:
        """Of some requests, the rows that survive per segment; fills in their logits [B,1,vocab]."""
        requests = self._requests[turn]
        new = [
            NewRows(request.prompt.ids[rows[0]], request.prompt.slots()[rows[0]], rows[0])
            for request, rows in zip(requests, kept, strict=True)
        ]
        score_rows = [request.score_rows for request in requests]
        self.kv_cache.bind(self._executor, turn)
        longest, most_scored = max(len(rows.ids) for rows in new), max(score_rows, key=len)
        for part in _cut(longest, most_scored, self._model.limits.score_rows().max):
            inputs = self._token_inputs(new, [request.prompt.features for request in requests], part)
            for segment, lengths in enumerate(self.kv_cache.lengths):
                lengths[turn] = [len(rows[segment][: part.stop]) for rows in kept]
                inputs[names.past_length(segment)] = np.array(
                    [len(rows[segment][: part.start]) for rows in kept], np.int32
                )
                inputs[names.kv_length(segment)] = lengths[turn]
                if segment:
                    # Places of the survivors among the rows of the segment before.
                    places = [np.searchsorted(rows[segment - 1], rows[segment])[part] - part.start for rows in kept]
                    inputs[names.keep_index(segment)] = pad(places)
            last = self.kv_cache.lengths[-1][turn, None].astype(np.int64) - 1
            inputs[names.LOGIT_INDEX] = last - part.start
            inside = [rows[_within(rows, part)] - part.start for rows in score_rows]
            self._scores.bind(turn, inside, part.start)
            self._bind(inputs, logits)
            self._executor.run()

    def _bind_decode(self) -> dict[str, np.ndarray]:
        """Bind buffers of one row per request -> those that later steps overwrite in place."""
        batch, config = len(self._requests), self._model.config
        nothing = NewRows(np.zeros(1, np.int64), np.full(1, -1), np.zeros(1, np.int64))
        features = np.empty((0, config.hidden_size), np.float32)
        changing = self._token_inputs([nothing] * batch, [features] * batch, slice(0, 1))
        fixed = {name: changing.pop(name) for name in (names.VISUAL_EMBEDS, names.VISUAL_SLOT)}
        changing |= {names.kv_length(segment): length for segment, length in enumerate(self.kv_cache.lengths)}
        changing |= {names.past_length(segment): length.copy() for segment, length in enumerate(self.kv_cache.lengths)}
        fixed |= self._identity_inputs(batch, 1)
        fixed[names.LOGIT_INDEX] = np.zeros((batch, 1), np.int64)
        self.kv_cache.bind(self._executor)
        self._scores.bind_decode()
        self._decode_logits = self._executor.zeros(names.LOGITS, (batch, 1, self._vocabulary()))
        placed = {name: self._executor.put(name, array) for name, array in fixed.items()}
        self._bind(changing | placed, self._decode_logits)
        return changing

    def _token_inputs(self, new: Sequence[NewRows], features: Sequence[Array], part: slice) -> dict[str, Any]:
        """Inputs that describe these of the new tokens, padded at the end to the longest request."""
        offsets = np.cumsum([0] + [len(feature) for feature in features[:-1]])
        slots = [np.where(rows.slots < 0, -1, rows.slots + o) for rows, o in zip(new, offsets, strict=True)]
        positions = pad([rows.positions[part] for rows in new])
        lengths = np.array([rows.positions[-1] + 1 for rows in new])
        cos, sin = self._model.rope.cos_sin(positions, lengths)
        visual = features[0] if len(features) == 1 else concat(features)
        if not len(visual):
            visual = np.zeros((1, self._model.config.hidden_size), np.float32)
        return {
            names.INPUT_IDS: pad([rows.ids[part] for rows in new]),
            names.VISUAL_EMBEDS: visual,
            names.VISUAL_SLOT: pad([rows[part] for rows in slots], fill=-1),
            names.ROPE_COS: cos,
            names.ROPE_SIN: sin,
        }

    def _identity_inputs(self, batch: int, rows: int) -> dict[str, np.ndarray]:
        """Prune points that drop nothing."""
        index = np.tile(np.arange(rows), (batch, 1))
        return {names.keep_index(segment): index for segment in range(1, len(self.kv_cache.lengths))}

    def _make_scores(self) -> VisualScores:
        model, config = self._model, self._model.config
        if not model.scores:
            return NoVisualScores()
        columns = pad([request.score_columns() for request in self._requests], minimum=1)
        if model.scoring is None:
            return InEngineScores(self._executor, columns, config.num_layers)
        sizes = config.num_layers, names.query_width(config, model.mapping)
        return DeferredScores(self._executor, model.scoring, self.kv_cache, columns, *sizes, model.limits)

    def _vocabulary(self) -> int:
        return len(self._model.mapping.vocabulary(self._model.config.vocab_size))

    def _bind(self, inputs: dict[str, Any], logits: Array) -> None:
        for name, array in inputs.items():
            self._executor.bind_input(name, array)
        self._executor.bind_output(names.LOGITS, logits)


def _cut(total: int, counted: np.ndarray, most: int) -> list[slice]:
    """Consecutive parts of `total` rows that hold at most `most` of the counted ones (sorted) each."""
    starts = [0, *(int(row) for row in counted[most::most])]
    return [slice(start, stop) for start, stop in pairwise([*starts, total])]


def _within(rows: np.ndarray, part: slice) -> slice:
    """Which of these rows (sorted) lie in a part."""
    return slice(*(int(place) for place in np.searchsorted(rows, [part.start, part.stop])))
