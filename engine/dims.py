"""Named dimensions. The same name is the same size in every input and output of one engine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension with the range that an engine is built for."""

    name: str
    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        assert 0 <= self.min <= self.opt <= self.max, self

    def __str__(self) -> str:
        return self.name


Size = Dim | int
"""A dimension: dynamic, or fixed by the model."""


@dataclass(frozen=True)
class Limits:
    """What an engine is built for; every range below follows from it."""

    max_tokens: int
    max_batch: int
    max_tiles: int

    def batch(self) -> Dim:
        """B: requests of one call."""
        return Dim("batch", 1, 1, self.max_batch)

    def sequence(self) -> Dim:
        """S: new tokens of one call."""
        return self._tokens("sequence")

    def kept(self, segment: int) -> Dim:
        """S': new tokens that survive the prune points up to `segment`."""
        return self._tokens(f"kept_{segment}")

    def cache(self, segment: int) -> Dim:
        """T: length of the KV buffers of `segment`."""
        return self._tokens(f"cache_{segment}")

    def visual(self) -> Dim:
        """V: visual tokens of a whole call; a call without any feeds one unused row."""
        return Dim("visual", 1, 1, self.max_batch * self.max_tokens)

    def visual_columns(self) -> Dim:
        """V: visual tokens of the request that has most of them."""
        return Dim("visual_columns", 1, 1, self.max_tokens)

    def score_rows(self) -> Dim:
        """R: query rows whose attention is scored."""
        return self._tokens("score_rows")

    def logit_rows(self) -> Dim:
        """Rows whose logits are wanted."""
        return self._tokens("logit_rows")

    def tiles(self) -> Dim:
        """N: tiles of one call of the vision encoder."""
        return Dim("tiles", 1, min(7, self.max_tiles), self.max_tiles)

    def _tokens(self, name: str) -> Dim:
        return Dim(name, 1, 1, self.max_tokens)
