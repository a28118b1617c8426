"""Visual features of the pictures that were asked about lately: another question about one does not encode it again."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from engine.runtime.arrays import Array, concat
from engine.runtime.vision import Vision


class FeatureCache:
    """A vision encoder and the features that it made last, where it made them.

    Who receives features must not write into them.
    """

    def __init__(self, vision: Vision, tokens_per_tile: int, capacity: int) -> None:
        """capacity: most bytes of features that are kept, those used last; 0 keeps none."""
        self._vision, self._tokens_per_tile, self._capacity = vision, tokens_per_tile, capacity
        self._kept: OrderedDict[bytes, Array] = OrderedDict()

    def encode(self, pictures: Sequence[np.ndarray]) -> list[Array]:
        """float32 [N,3,P,P] each -> [N*T,C] each. Equal pictures are encoded once."""
        keys = [hashlib.sha256(np.ascontiguousarray(tiles).data).digest() for tiles in pictures]
        features = {key: self._kept[key] for key in keys if key in self._kept}
        if new := {key: tiles for key, tiles in zip(keys, pictures, strict=True) if key not in features}:
            encoded = self._vision.encode(np.concatenate([*new.values()]))
            ends = accumulate(len(tiles) * self._tokens_per_tile for tiles in new.values())
            # A part of the whole would hold the memory of all of it.
            parts = [concat([encoded[start:end]]) for start, end in pairwise([0, *ends])]
            features |= zip(new, parts, strict=True)
        for key in keys:
            self._kept[key] = features[key]
            self._kept.move_to_end(key)
        while sum(part.nbytes for part in self._kept.values()) > self._capacity:
            self._kept.popitem(last=False)
        return [features[key] for key in keys]
