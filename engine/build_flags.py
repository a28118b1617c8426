"""The flags of `sgl build` that a remedy names: how an engine was built is mended by that command alone."""

from enum import StrEnum


class BuildFlag(StrEnum):
    """Each is one of its options, as it is typed."""

    SMALL = "--small"
    LARGE = "--large"
    OUT = "--out"
    TARGET = "--target"
    PRECISION = "--precision"
    MAX_TOKENS = "--max-tokens"
    MAX_BATCH = "--max-batch"
    MAX_TILES = "--max-tiles"
    MIN_PIXELS = "--min-pixels"
    MAX_PIXELS = "--max-pixels"
    PRUNE_LAYERS = "--prune-layers"
    MAX_KEPT_TOKENS = "--max-kept-tokens"
    LARGE_SCORES = "--large-scores"
    TP = "--tp"
    RANK = "--rank"
