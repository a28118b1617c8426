"""What is known of a clip before its frames are chosen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClipFacts:
    """What demuxing counts, and what the container says where it agrees.

    frames: as many as can be chosen. rate: frames per second, on average. width, height: with the display rotation.
    """

    frames: int
    rate: float
    seconds: float
    width: int
    height: int


Choose = Callable[[ClipFacts], Sequence[int]]
"""Indices of frames, 0..frames-1, ascending; one may be there more than once."""
