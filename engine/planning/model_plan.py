"""One model on one rank: its declared graphs, and what they need for a workload."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from engine.bindings import (
    Binding,
    key_cache,
    language_bindings,
    past_kv,
    present_kv,
    scoring_bindings,
    vision_bindings,
)
from engine.build.language import language_graph
from engine.build.scoring import scoring_graph
from engine.build.vision import vision_graph
from engine.config import GuidanceConfig
from engine.dims import SCORED_AT_ONCE, Limits, Phase, Size
from engine.model_config import ModelConfig, QwenVitConfig
from engine.parallel import Shard, check_shards
from engine.planning import graph_cost
from engine.planning.storage import Storage
from engine.planning.workload import Workload
from engine.plugins.targets.onnxruntime import ONNXRUNTIME
from engine.runtime.vision import PIECES_PER_CALL

LIMITS = Limits(max_tokens=1, max_batch=1, max_tiles=1)
"""A plan puts sizes in the place of the dimensions: of these it needs the names, not the ranges."""
PLANNED = Limits(max_tokens=1 << 20, max_batch=1, max_tiles=1, planned=True)
"""Of these the ranges that a target with planned memory has whatever it is built for."""


@dataclass(frozen=True)
class Call:
    """One run of an engine on one rank: multiplications and additions, bytes of weights and KV cache that it reads.

    reduced: bytes of each tensor that is summed over the ranks.
    """

    operations: int
    bytes: int
    reduced: tuple[int, ...] = ()


class ModelPlan:
    """What one rank holds of a model and does. Raises EngineError if the model cannot be split among the ranks."""

    def __init__(
        self,
        config: ModelConfig,
        storage: Storage,
        shard: Shard,
        prune_layers: Sequence[int] = (),
        guidance: GuidanceConfig | None = None,
        scores: bool = False,
        planned: bool = False,
    ) -> None:
        """guidance: resolved for this model and these prune layers; None keeps every visual token.

        planned: the target plans memory for the largest call that it is built for (`Limits.planned`).
        """
        self.config, self.shard, self._planned = config, shard, planned
        self._storage, self._prune_layers, self._guidance = storage, prune_layers, guidance
        check_shards(config.language, shard, config.name)
        self._language = language_graph(config.language, LIMITS, prune_layers, scores, shard)
        scoring = config.language, PLANNED if planned else LIMITS, prune_layers, shard
        self._scoring = scoring_graph(*scoring) if scores else None
        self._vision = vision_graph(config.vision, LIMITS)
        self.language_bytes = graph_cost.weight_bytes(self._language, storage)
        self.vision_bytes = graph_cost.weight_bytes(self._vision, storage.of_vision())
        layers = range(config.language.num_layers)
        bound = language_bindings(config.language, LIMITS, prune_layers, ONNXRUNTIME.scoring(scores), shard)
        cached = {name for layer in layers for name in (*past_kv(layer), *present_kv(layer))}
        by_name = {binding.name: binding for binding in bound.inputs}
        self._kv = [[by_name[name] for name in past_kv(layer)] for layer in layers]
        self._others = [binding for binding in (*bound.inputs, *bound.outputs) if binding.name not in cached]
        scored, keys = scoring_bindings(*scoring), {key_cache(layer) for layer in layers}
        self._scored = [binding for binding in (*scored.inputs, *scored.outputs) if binding.name not in keys]

    def unpruned(self) -> "ModelPlan":
        """The same engines, asked to keep every visual token."""
        return self.guided(None)

    def guided(self, guidance: GuidanceConfig | None) -> "ModelPlan":
        """The same engines, asked to prune so."""
        model = copy(self)
        model._guidance = guidance
        return model

    def keeping(self, ratio: float) -> "ModelPlan":
        """The same engines, asked to keep this fraction of the visual tokens, where they prune."""
        assert self._guidance is not None
        return self.guided(replace(self._guidance, retention_ratio=ratio))

    def kv_bytes(self, workload: Workload) -> tuple[int, int]:
        """Of the buffers of the layers below the prune layer, and of those from it on."""
        lengths = [rows + workload.new_tokens for rows in self._prompt_rows(workload)]
        layers = self._kv_bytes(self._language_sizes(workload, lengths, lengths))
        pruned_from = len(layers) if self._guidance is None else self._guidance.prune_layer
        return sum(layers[:pruned_from]), sum(layers[pruned_from:])

    def activation_bytes(self, workload: Workload) -> int:
        """The most that one call has beside weights and KV cache: intermediate values, inputs and outputs."""
        bound = vision_bindings(self.config.vision, LIMITS)
        prompts = workload
        if self._planned:
            prompts = replace(workload, batch=PLANNED.batch().during(Phase.PREFILL).max)
        largest = max(workload.pieces(self.config))
        sizes = self._vision_sizes(PIECES_PER_CALL, largest)
        vision = self._call_bytes(self._vision, (*bound.inputs, *bound.outputs), sizes)
        calls = self._prefill_sizes(prompts), self._decode_sizes(workload, workload.new_tokens)
        language = [self._call_bytes(self._language, self._others, sizes) for sizes in calls]
        scoring = [] if self._scoring is None else [self._call_bytes(self._scoring, self._scored, x) for x in calls]
        return max(vision, *language, *scoring)

    def vision_call(self, workload: Workload) -> Call:
        """All pictures and clips; each rank encodes its share of the tiles and frames, or of the pictures and pairs of
        frames where they are not cut up, one after the other.
        """
        read, ranks = graph_cost.read_bytes(self._vision, self._storage.of_vision()), self.shard.world_size
        shares = {
            tokens: -(-workload.batch * count // ranks)
            for tokens, count in workload.pieces(self.config, self._guidance).items()
        }
        cost = graph_cost.operations
        if not isinstance(self.config.vision, QwenVitConfig):
            ((tokens, count),) = shares.items()
            return Call(cost(self._vision, self._vision_sizes(count, tokens)), read)
        operations = sum(n * cost(self._vision, self._vision_sizes(1, tokens)) for tokens, n in shares.items())
        return Call(operations, sum(shares.values()) * read)

    def prefill(self, workload: Workload) -> Call:
        return self._language_call(self._prefill_sizes(workload))

    def decode(self, workload: Workload) -> Call:
        """One more token for each question, half-way through the answer."""
        return self._language_call(self._decode_sizes(workload, workload.new_tokens // 2))

    def _language_call(self, sizes: graph_cost.Sizes) -> Call:
        read = graph_cost.read_bytes(self._language, self._storage) + sum(self._kv_bytes(sizes))
        reduced = graph_cost.all_reduces(self._language, sizes, self._storage)
        return Call(graph_cost.operations(self._language, sizes), read, tuple(reduced))

    def _call_bytes(self, graph: graph_cost.Graph, bindings: Sequence[Binding], sizes: graph_cost.Sizes) -> int:
        bound = sum(_count(binding, sizes) * np.dtype(binding.dtype).itemsize for binding in bindings)
        return bound + graph_cost.peak_activation_bytes(graph, sizes, self._storage)

    def _kv_bytes(self, sizes: graph_cost.Sizes) -> list[int]:
        """Of each layer."""
        bits = self._storage.activation
        return [sum(_count(binding, sizes) for binding in layer) * bits // 8 for layer in self._kv]

    def _prompt_rows(self, workload: Workload) -> list[int]:
        return workload.prompt_rows(self.config, self._prune_layers, self._guidance)

    def _prefill_sizes(self, workload: Workload) -> dict[str, int]:
        rows = self._prompt_rows(workload)
        return self._language_sizes(workload, rows, rows)

    def _decode_sizes(self, workload: Workload, generated: int) -> dict[str, int]:
        lengths = [rows + generated for rows in self._prompt_rows(workload)]
        return self._language_sizes(workload, lengths, [1] * len(lengths))

    def _language_sizes(self, workload: Workload, cached: Sequence[int], rows: Sequence[int]) -> dict[str, int]:
        """By segment: tokens of each question in the KV cache after a call, and those that the call adds."""
        visual = workload.visual_tokens(self.config)
        is_decode = rows[0] == 1
        score_rows = min(workload.text_tokens, PLANNED.score_rows().max) if self._planned else workload.text_tokens
        sizes: dict[Size, int] = {
            LIMITS.batch(): workload.batch,
            LIMITS.sequence(): rows[0],
            LIMITS.visual(): 1 if is_decode else workload.batch * visual,
            LIMITS.visual_columns(): visual,
            LIMITS.score_rows(): 1 if is_decode else score_rows,
            LIMITS.scored_rows(): SCORED_AT_ONCE,
            LIMITS.logit_rows(): 1,
            PLANNED.scored_cache(0): cached[0],
        }
        for segment, (length, new) in enumerate(zip(cached, rows, strict=True)):
            sizes |= {LIMITS.cache(segment): length, LIMITS.kept(segment): new}
        return _by_name(sizes)

    def _vision_sizes(self, pieces: int, tokens: int) -> dict[str, int]:
        """Of a run of so many tiles, or of one picture or pair of frames that makes so many tokens."""
        vision = self.config.vision
        if not isinstance(vision, QwenVitConfig):
            return _by_name({LIMITS.tiles(): pieces})
        each = vision.merged**2
        side = vision.window or 1
        windows = -(-tokens // side**2)
        return _by_name(
            {LIMITS.picture_tokens(): tokens, LIMITS.patches(each): each * tokens, LIMITS.windows(side): windows}
        )


def _by_name(sizes: dict[Size, int]) -> dict[str, int]:
    return {str(dim): size for dim, size in sizes.items()}


def _count(binding: Binding, sizes: graph_cost.Sizes) -> int:
    return math.prod(dim if isinstance(dim, int) else sizes[str(dim)] for dim in binding.dims)
