"""Named dimensions. The same name is the same size in every input and output of one engine."""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a call does: feed one request many tokens, or each request one."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension with the range that an engine is built for."""

    name: str
    min: int
    opt: int
    max: int
    at_most: tuple[Phase, int] | None = None
    """A phase in which it is not larger than this, where plans know phases."""

    def __post_init__(self) -> None:
        assert 0 <= self.min <= self.opt <= self.max, self

    def during(self, phase: Phase) -> "Dim":
        """Its range in one phase."""
        if self.at_most is None or self.at_most[0] is not phase:
            return self
        most = self.at_most[1]
        return Dim(self.name, min(self.min, most), min(self.opt, most), most)

    def __str__(self) -> str:
        return self.name


Size = Dim | int
"""A dimension: dynamic, or fixed by the model."""
TYPICAL_TOKENS = 2048
"""What plans are tuned for: a picture of seven tiles and a question."""
ONE_TOKEN = (Phase.DECODE, 1)
MAX_SCORE_ROWS = 256
MAX_LOGIT_ROWS = 256
"""Of one call, where memory is planned for the largest one: scores are [rows, tokens], logits [rows, vocabulary]."""
SCORED_AT_ONCE = 32
"""Rows of one request in one run of the scoring engine: keys are read once for all of them."""


@dataclass(frozen=True)
class Limits:
    """What an engine is built for; every range below follows from it."""

    max_tokens: int
    max_batch: int
    max_tiles: int
    planned: bool = False
    """Whether memory is planned for the largest call: KV buffers have one length, rows that cost much are bounded."""
    max_kept_tokens: int | None = None
    """Where planned, the longest sequence from the first prune point on; None is max_tokens."""
    max_picture_tokens: int = 1
    """Of one picture, where a vision encoder takes it whole."""

    def batch(self) -> Dim:
        """B: requests of one call."""
        # Two where one would do: TensorRT keeps a second copy of the weights for a phase in which nothing varies.
        most = max(2, self.max_batch) if self.planned else self.max_batch
        return Dim("batch", 1, 1, most, at_most=(Phase.PREFILL, 2))

    def sequence(self) -> Dim:
        """S: new tokens of one call."""
        return self._tokens("sequence", self.max_tokens)

    def kept(self, segment: int) -> Dim:
        """S': new tokens that survive the prune points up to `segment`."""
        return self._tokens(f"kept_{segment}", self.segment_tokens(segment))

    def segment_tokens(self, segment: int) -> int:
        """The longest sequence in the layers of a segment."""
        return self.max_kept_tokens if segment and self.max_kept_tokens is not None else self.max_tokens

    def cache(self, segment: int) -> Size:
        """T: length of the KV buffers of `segment`."""
        return self.segment_tokens(segment) if self.planned else Dim(f"cache_{segment}", 1, 1, self.max_tokens)

    def visual(self) -> Dim:
        """V: visual tokens of a whole call; a call without any feeds one unused row."""
        most = self.max_tokens * (1 if self.planned else self.max_batch)
        return Dim("visual", 1, min(TYPICAL_TOKENS, most), most, at_most=ONE_TOKEN)

    def visual_columns(self) -> Dim:
        """V: visual tokens of the request that has most of them."""
        return Dim("visual_columns", 1, min(TYPICAL_TOKENS, self.max_tokens), self.max_tokens)

    def score_rows(self) -> Dim:
        """R: query rows whose attention is scored."""
        return self._rows("score_rows", MAX_SCORE_ROWS, 64)

    def scored_rows(self) -> Dim:
        """R: of the scoring engine, which is for one request at a time."""
        return Dim("scored_rows", 1, SCORED_AT_ONCE, SCORED_AT_ONCE)

    def scored_layers(self, num_layers: int) -> int:
        """Layers of one run of the scoring engine: all, but a plan would hold kernels for each of them."""
        return 1 if self.planned else num_layers

    def scored_cache(self, segment: int) -> Size:
        """T: of the scoring engine; one that takes layer after layer takes those of all segments."""
        return Dim("cache", 1, self.max_tokens, self.max_tokens) if self.planned else self.cache(segment)

    def logit_rows(self) -> Dim:
        """Rows whose logits are wanted."""
        return self._rows("logit_rows", MAX_LOGIT_ROWS, 1)

    def tiles(self) -> Dim:
        """N: tiles of one call of the vision encoder."""
        return Dim("tiles", 1, min(7, self.max_tiles), self.max_tiles)

    def picture_tokens(self) -> Dim:
        """V: visual tokens of a picture that is encoded whole."""
        return Dim("picture_tokens", 1, min(TYPICAL_TOKENS, self.max_picture_tokens), self.max_picture_tokens)

    def patches(self, patches_per_token: int) -> Dim:
        """P: its patches."""
        tokens = self.picture_tokens()
        least, typical, most = (patches_per_token * size for size in (tokens.min, tokens.opt, tokens.max))
        return Dim("patches", least, typical, most)

    def windows(self, side: int) -> Dim:
        """W: its windows of so many tokens along one side; of a thin picture each holds few."""
        tokens = self.picture_tokens()
        return Dim("windows", 1, max(1, tokens.opt // side**2), tokens.max // side + 1)

    def _tokens(self, name: str, most: int) -> Dim:
        return Dim(name, 1, min(TYPICAL_TOKENS, most), most, at_most=ONE_TOKEN)

    def _rows(self, name: str, planned_most: int, typical: int) -> Dim:
        most = min(planned_most, self.max_tokens) if self.planned else self.max_tokens
        return Dim(name, 1, min(typical, most), most, at_most=ONE_TOKEN)


UNBOUNDED = Limits(max_tokens=1 << 30, max_batch=1 << 30, max_tiles=1)
"""Of an engine without a plan, whose buffers are as large as a call needs."""
