"""What is known of a clip before its frames are chosen, and how a question chooses among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import RequestError, Setting


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


MAX_FPS = 1000
Choose = Callable[[ClipFacts], Sequence[int]]
"""Indices of frames, 0..frames-1, ascending; one may be there more than once."""


@dataclass(frozen=True)
class FrameOptions:
    """How many frames of a clip a question is about; None is the family's own rule.

    frames: so many. fps: so many for each second. max_frames: of those, at most.
    """

    frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RequestError(Setting(name), f" {value!r} is no whole number above 0; give one, or none")
        fps = self.fps
        if fps is not None and not (_is_number(fps) and 0 < fps <= MAX_FPS):
            raise RequestError(Setting("fps"), f" {fps!r} is not in 0..{MAX_FPS}; give frames per second, or none")
        if self.frames is not None and self.fps is not None:
            raise RequestError(Setting("frames"), " and ", Setting("fps"), " contradict each other; give one of them")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
