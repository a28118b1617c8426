"""KV caches, bound in place: full length below the first prune point, short from the point in use on."""

from collections.abc import Sequence

import numpy as np

from engine.bindings import past_kv, present_kv, segment_of
from engine.model_config import LanguageConfig
from engine.runtime.executor import Executor


class KvCache:
    """Keys and values of a batch of requests, one buffer per layer, and how many tokens each holds.

    lengths: int32 [B] per segment, the tokens of each request in the layers of that segment.
    """

    def __init__(
        self, config: LanguageConfig, num_kv_heads: int, prune_layers: Sequence[int], batch: int, sizes: Sequence[int]
    ) -> None:
        """sizes: tokens that the buffers of each segment must hold; what pruning frees is never allocated."""
        assert len(sizes) == len(prune_layers) + 1
        self.lengths = [np.zeros(batch, np.int32) for _ in sizes]
        self._segments = [segment_of(layer, prune_layers) for layer in range(config.num_layers)]
        # zeros: rows past a request's end are read (and masked), so they must be finite.
        self._layers = [
            [np.zeros((batch, num_kv_heads, sizes[segment], config.head_dim), np.float32) for _ in "kv"]
            for segment in self._segments
        ]

    def bind(self, executor: Executor, request: int | None = None) -> None:
        """Bind every layer's buffers, of the whole batch or of one request, as past and as present."""
        for layer, buffers in enumerate(self._layers):
            for past, present, buffer in zip(past_kv(layer), present_kv(layer), buffers, strict=True):
                view = buffer if request is None else buffer[request : request + 1]
                executor.bind_input(past, view)
                executor.bind_output(present, view)

    def nbytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.nbytes for buffers in self._layers for buffer in buffers)
