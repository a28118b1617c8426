"""Visual features of the pictures that were asked about lately: another question about one does not encode it again."""

from collections import OrderedDict

from engine.runtime.arrays import Array


class FeatureCache:
    """Features where the vision encoder made them, by `Pieces.digest`. Nobody may write into them."""

    def __init__(self, capacity: int) -> None:
        """capacity: most bytes of features that are kept, those used last; 0 keeps none."""
        self._capacity = capacity
        self._kept: OrderedDict[bytes, Array] = OrderedDict()

    def get(self, key: bytes) -> Array | None:
        """[V,C]"""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: bytes, features: Array) -> None:
        self._kept[key] = features
        while sum(part.nbytes for part in self._kept.values()) > self._capacity:
            self._kept.popitem(last=False)
