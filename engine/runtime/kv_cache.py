"""KV caches, bound in place: full length below the first prune point, short from the point in use on."""

from collections.abc import Sequence

import numpy as np

from engine.bindings import past_kv, present_kv, segment_of
from engine.model_config import LanguageConfig
from engine.runtime.arrays import Array
from engine.runtime.executor import Buffers, Executor


class KvCache:
    """Keys and values of a batch of requests, one buffer per layer, and how many tokens each holds.

    lengths: int32 [B] per segment, the tokens of each request in the layers of that segment.
    """

    def __init__(
        self,
        place: Buffers,
        config: LanguageConfig,
        num_kv_heads: int,
        prune_layers: Sequence[int],
        batch: int,
        sizes: Sequence[int],
    ) -> None:
        """place: what makes the buffers. sizes: tokens that those of each segment hold; what pruning frees is never
        allocated, unless a plan fixes their length.
        """
        assert len(sizes) == len(prune_layers) + 1
        self.lengths = [np.zeros(batch, np.int32) for _ in sizes]
        shapes = [(batch, num_kv_heads, size, config.head_dim) for size in sizes]
        # zeros: rows past a request's end are read (and masked), so they must be finite.
        self._layers = [
            [place.zeros(name, shapes[segment_of(layer, prune_layers)]) for name in past_kv(layer)]
            for layer in range(config.num_layers)
        ]

    def bind(self, executor: Executor, requests: slice = slice(None)) -> None:
        """Bind these requests' part of every layer's buffers, as past and as present."""
        for layer, buffers in enumerate(self._layers):
            for past, present, buffer in zip(past_kv(layer), present_kv(layer), buffers, strict=True):
                part = buffer[requests]
                executor.bind_input(past, part)
                executor.bind_output(present, part)

    def keys(self) -> list[Array]:
        """[B,Hkv,T,D] of each layer."""
        return [keys for keys, _ in self._layers]

    def nbytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.nbytes for buffers in self._layers for buffer in buffers)
