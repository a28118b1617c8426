"""Visual features of the pictures that were asked about lately: another question about one does not encode it again."""

import hashlib
from collections import OrderedDict

import numpy as np

from engine.families import Packing
from engine.runtime.arrays import Array


class FeatureCache:
    """Features where the vision encoder made them. Who receives features must not write into them."""

    def __init__(self, capacity: int) -> None:
        """capacity: most bytes of features that are kept, those used last; 0 keeps none."""
        self._capacity = capacity
        self._kept: OrderedDict[bytes, Array] = OrderedDict()

    @staticmethod
    def key(pixels: np.ndarray, packing: Packing | None = None) -> bytes:
        """float32 [N,...] -> what equal pictures have in common; their shape, too, or others had the same values."""
        digest = hashlib.sha256(repr(pixels.shape).encode())
        for array in (pixels,) if packing is None else (pixels, packing.taps, packing.weights):
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    def get(self, key: bytes) -> Array | None:
        """[V,C]"""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: bytes, features: Array) -> None:
        self._kept[key] = features
        while sum(part.nbytes for part in self._kept.values()) > self._capacity:
            self._kept.popitem(last=False)
