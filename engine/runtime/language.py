"""A language engine at work: prefill (pruned or scored), decode, and the parallel scoring pass of SEE.

Shapes: B requests, S new tokens, V visual tokens, L layers, C hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine import bindings as names
from engine.bindings import segment_of
from engine.model_config import LanguageConfig
from engine.parallel import Mapping
from engine.runtime.executor import Executor
from engine.runtime.kv_cache import KvCache
from engine.runtime.rope import RopeTable


@dataclass(frozen=True)
class PromptTokens:
    """One request's tokenized prompt.

    ids: int64 [S]; visual_positions: int64 [V], where the image tokens are, in order; features: float32 [V,C].
    """

    ids: np.ndarray
    visual_positions: np.ndarray
    features: np.ndarray

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


class Prefilled(Protocol):
    """A batch whose prompts have run, wherever its model is; the methods are those of `Generation`."""

    logits: np.ndarray

    def visual_scores(self, request: int) -> np.ndarray: ...

    def decode(self, tokens: np.ndarray, active: np.ndarray, scored: np.ndarray) -> np.ndarray: ...

    def score(self, request: int, visual_kept: np.ndarray, answer: np.ndarray) -> np.ndarray: ...


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
    ) -> None:
        """mapping: the rank whose share of the model the engine is; its logits are of that rank's vocabulary only."""
        self.executor, self.config, self.mapping = executor, config, mapping
        self.prune_layers, self.scores = tuple(prune_layers), scores
        self.rope = RopeTable(config.rope, config.head_dim)

    def prefill(self, requests: Sequence[Request], max_new_tokens: int) -> "Generation":
        """Run the prompts of a batch and keep what decoding needs."""
        return Generation(self, requests, max_new_tokens)


class Generation:
    """A batch of requests in progress. `logits` [B,vocab] are of each request's last token."""

    def __init__(self, model: LanguageModel, requests: Sequence[Request], max_new_tokens: int) -> None:
        self._model, self._requests = model, requests
        batch, segments = len(requests), len(model.prune_layers) + 1
        kept = [_segment_rows(request, model.prune_layers) for request in requests]
        sizes = [max(len(rows[segment]) for rows in kept) + max_new_tokens for segment in range(segments)]
        kv_heads = len(model.mapping.kv_heads(model.config.num_kv_heads))
        self.kv_cache = KvCache(model.config, kv_heads, model.prune_layers, batch, sizes)
        self._positions = np.array([len(request.prompt.ids) for request in requests])
        self._columns = _pad([request.score_columns() for request in requests], minimum=1)
        self._scores = np.zeros((batch, model.config.num_layers, self._columns.shape[1]), np.float32)
        self.logits = self._prefill(kept)
        self._decode_inputs: dict[str, np.ndarray] | None = None

    def visual_scores(self, request: int) -> np.ndarray:
        """[L,V]: attention that each visual token received so far, by layer, summed over heads and scored rows."""
        return self._scores[request, :, : len(self._requests[request].prompt.visual_positions)]

    def decode(self, tokens: np.ndarray, active: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """[B], [B] bool, [B] bool -> logits [B,vocab]: feed one token per request.

        An inactive request's token is ignored and its logits are unspecified; `scored` rows add to `visual_scores`.
        """
        if self._decode_inputs is None:
            self._decode_inputs = self._bind_decode()
        inputs = self._decode_inputs
        for length in self.kv_cache.lengths:
            length += active
        self._positions += active
        position = self._positions[:, None] - 1
        inputs[names.INPUT_IDS][:, 0] = tokens
        cos, sin = self._model.rope.cos_sin(position, self._positions)
        inputs[names.ROPE_COS][:], inputs[names.ROPE_SIN][:] = cos, sin
        if self._model.scores:
            inputs[names.SCORE_WEIGHT][:, 0] = active & scored
        self._model.executor.run()
        return self._decode_logits[:, 0]

    def score(self, request: int, visual_kept: np.ndarray, answer: np.ndarray) -> np.ndarray:
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
        total = np.array([prefix + len(new.ids)], np.int32)
        inputs = self._token_inputs([new], [prompt.features])
        inputs |= {names.kv_length(segment): total for segment in range(len(self.kv_cache.lengths))}
        inputs |= self._identity_inputs(1, len(new.ids))
        inputs |= self._score_inputs([np.empty(0, np.int64)], self._columns[request : request + 1])
        inputs[names.LOGIT_INDEX] = np.arange(len(rows) - 1, len(new.ids))[None]
        self.kv_cache.bind(self._model.executor, request)
        self._decode_inputs = None
        return self._run(inputs, np.zeros_like(self._scores[request : request + 1]))[0]

    def _prefill(self, kept: list[list[np.ndarray]]) -> np.ndarray:
        """Per request and segment, the rows that survive -> logits [B,vocab]."""
        requests = self._requests
        new = [
            NewRows(request.prompt.ids[rows[0]], request.prompt.slots()[rows[0]], rows[0])
            for request, rows in zip(requests, kept, strict=True)
        ]
        inputs = self._token_inputs(new, [request.prompt.features for request in requests])
        for segment, length in enumerate(self.kv_cache.lengths):
            length[:] = [len(rows[segment]) for rows in kept]
            inputs[names.kv_length(segment)] = length
            if segment:
                # Places of the survivors among the rows of the segment before.
                inputs[names.keep_index(segment)] = _pad(
                    [np.searchsorted(rows[segment - 1], rows[segment]) for rows in kept]
                )
        inputs[names.LOGIT_INDEX] = self.kv_cache.lengths[-1][:, None].astype(np.int64) - 1
        inputs |= self._score_inputs([request.score_rows for request in requests], self._columns)
        self.kv_cache.bind(self._model.executor)
        return self._run(inputs, self._scores)[:, 0]

    def _bind_decode(self) -> dict[str, np.ndarray]:
        """Bind buffers of one row per request that later steps overwrite in place."""
        batch, config = len(self._requests), self._model.config
        nothing = NewRows(np.zeros(1, np.int64), np.full(1, -1), np.zeros(1, np.int64))
        inputs = self._token_inputs([nothing] * batch, [np.empty((0, config.hidden_size), np.float32)] * batch)
        inputs |= {names.kv_length(segment): length for segment, length in enumerate(self.kv_cache.lengths)}
        inputs |= self._identity_inputs(batch, 1)
        inputs |= self._score_inputs([np.zeros(1, np.int64)] * batch, self._columns)
        inputs[names.LOGIT_INDEX] = np.zeros((batch, 1), np.int64)
        self.kv_cache.bind(self._model.executor)
        self._decode_logits = self._bind(inputs, self._scores)
        return inputs

    def _token_inputs(self, new: Sequence[NewRows], features: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs that describe the new tokens, padded at the end to the longest request."""
        offsets = np.cumsum([0] + [len(feature) for feature in features[:-1]])
        slots = [np.where(rows.slots < 0, -1, rows.slots + o) for rows, o in zip(new, offsets, strict=True)]
        positions = _pad([rows.positions for rows in new])
        lengths = np.array([rows.positions[-1] + 1 for rows in new])
        cos, sin = self._model.rope.cos_sin(positions, lengths)
        visual = np.concatenate(features)
        if not len(visual):
            visual = np.zeros((1, self._model.config.hidden_size), np.float32)
        return {
            names.INPUT_IDS: _pad([rows.ids for rows in new]),
            names.VISUAL_EMBEDS: visual,
            names.VISUAL_SLOT: _pad(slots, fill=-1),
            names.ROPE_COS: cos,
            names.ROPE_SIN: sin,
        }

    def _identity_inputs(self, batch: int, rows: int) -> dict[str, np.ndarray]:
        """Prune points that drop nothing."""
        index = np.tile(np.arange(rows), (batch, 1))
        return {names.keep_index(segment): index for segment in range(1, len(self.kv_cache.lengths))}

    def _score_inputs(self, rows: Sequence[np.ndarray], columns: np.ndarray) -> dict[str, np.ndarray]:
        """Which rows are scored against which columns; nothing for an engine without scores."""
        if not self._model.scores:
            return {}
        return {
            names.SCORE_ROW: _pad(rows, minimum=1),
            names.SCORE_WEIGHT: _pad([np.ones(len(r), np.float32) for r in rows], minimum=1),
            names.VISUAL_COLUMN: columns,
        }

    def _bind(self, inputs: dict[str, np.ndarray], scores: np.ndarray) -> np.ndarray:
        """Bind inputs and outputs; the accumulator is updated in place. -> the logits buffer [B,R,vocab]."""
        executor = self._model.executor
        for name, array in inputs.items():
            executor.bind_input(name, array)
        vocabulary = len(self._model.mapping.vocabulary(self._model.config.vocab_size))
        logits = np.empty((*inputs[names.LOGIT_INDEX].shape, vocabulary), np.float32)
        executor.bind_output(names.LOGITS, logits)
        if self._model.scores:
            executor.bind_input(names.VISUAL_SCORES, scores)
            executor.bind_output(names.VISUAL_SCORES_OUT, scores)
        return logits

    def _run(self, inputs: dict[str, np.ndarray], scores: np.ndarray) -> np.ndarray:
        logits = self._bind(inputs, scores)
        self._model.executor.run()
        return logits


def _segment_rows(request: Request, prune_layers: Sequence[int]) -> list[np.ndarray]:
    """Rows of the prompt that the layers of each segment see."""
    everything = np.arange(len(request.prompt.ids))
    if request.pruning is None:
        return [everything] * (len(prune_layers) + 1)
    first = segment_of(request.pruning.prune_layer, prune_layers)
    assert request.pruning.prune_layer in (0, *prune_layers), "pruning happens at layer 0 or at a built prune point"
    return [everything if segment < first else request.pruning.rows for segment in range(len(prune_layers) + 1)]


def _pad(rows: Sequence[np.ndarray], fill: int = 0, minimum: int = 0) -> np.ndarray:
    """[B] arrays of any lengths -> [B,N], filled at the end; N is at least `minimum`."""
    width = max(minimum, *(len(row) for row in rows))
    padded = np.full((len(rows), width), fill, rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
