"""Clips of a question: from a file, its bytes or pictures to the frames that a model is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from PIL import Image

from engine.config import PictureConfig, VideoConfig
from engine.errors import RequestError
from engine.families import Family, Frames
from engine.runtime.images import ImageSource, open_image, read_source
from engine.runtime.images.held import held_bytes, hold
from engine.video.clip import Clip
from engine.video.facts import ClipFacts
from engine.video.limits import ClipLimits
from engine.video.reader import read_clip

PICTURES_A_SECOND = 2.0
"""Of frames that come without their times, as the published preprocessing of Qwen2-VL takes them."""
LATEST = 1e9
"""Seconds."""
LIMITS = ClipLimits()
Check = Callable[[int, int, int], None]
"""Of a number of frames, their width and height; raises where they are too many."""


@dataclass(frozen=True)
class ClipFrames:
    """A clip that somebody else read: pictures of one size, all of which every model is shown.

    seconds: when each is seen, ascending; none: `PICTURES_A_SECOND`.
    """

    pictures: tuple[ImageSource, ...]
    seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.pictures, list | tuple) or not self.pictures:
            raise RequestError("a clip of pictures holds none; give at least one")
        object.__setattr__(self, "pictures", tuple(self.pictures))
        object.__setattr__(self, "seconds", self._checked())

    def _checked(self) -> tuple[float, ...]:
        """Raises RequestError."""
        given = self.seconds if isinstance(self.seconds, list | tuple) else [None]
        if not len(given):
            return ()
        are_numbers = all(isinstance(at, Real) and not isinstance(at, bool) and abs(at) < LATEST for at in given)
        if not are_numbers or len(given) != len(self.pictures) or list(given) != sorted(given):
            raise RequestError("seconds of a clip are not one for each picture, ascending; give them so, or none")
        return tuple(map(float, given))

    def times(self) -> tuple[float, ...]:
        """When each is seen."""
        return self.seconds or tuple(index / PICTURES_A_SECOND for index in range(len(self.pictures)))

    def rate(self) -> float:
        """Pictures a second."""
        times = self.times()
        lasts = times[-1] - times[0]
        return (len(times) - 1) / lasts if lasts > 0 else PICTURES_A_SECOND


ClipSource = Path | str | bytes | ClipFrames
"""A file, the bytes of one, or frames."""


@dataclass(frozen=True)
class Shown:
    """Which frames of a clip a model was shown: their numbers in it, and when each is seen."""

    indices: tuple[int, ...]
    seconds: tuple[float, ...]


def open_clip(
    source: ClipSource,
    family: Family,
    video: VideoConfig,
    picture: PictureConfig,
    check: Check,
    timeout: float | None = None,
) -> tuple[Frames, Shown]:
    """The frames that a family's rule chooses. timeout: seconds of the question, after which nobody waits for them.
    Raises ImageError, and RequestError by `check` before any is decoded."""
    if isinstance(source, ClipFrames):
        return _given(source, picture, check)

    if not isinstance(source, Path | str | bytes):
        kind = type(source).__name__
        raise RequestError(f"a clip cannot be a {kind}; give a path, the bytes of a file, or ClipFrames")

    def choose(facts: ClipFacts) -> Sequence[int]:
        chosen = family.choose_frames(facts, video)
        check(len(chosen), facts.width, facts.height)
        return chosen

    seconds = LIMITS.seconds if timeout is None else min(LIMITS.seconds, timeout)
    clip = read_clip(source, choose, replace(LIMITS, seconds=seconds))
    rate = len(clip.indices) / clip.facts.frames * clip.facts.rate
    return Frames(clip.pictures, clip.seconds, clip.facts.seconds, rate), Shown(clip.indices, clip.seconds)


def open_frames(source: ClipSource, indices: Sequence[int], picture: PictureConfig) -> tuple[Image.Image, ...]:
    """These frames once more, to be looked at. Raises ImageError."""
    if isinstance(source, ClipFrames):
        return tuple(open_image(source.pictures[index], picture) for index in indices)
    clip: Clip = read_clip(source, lambda facts: indices, LIMITS)
    return clip.pictures


def clip_bytes(source: ClipSource) -> int:
    """Memory that `hold_clip` takes or keeps; a file is read when its turn comes."""
    if isinstance(source, ClipFrames):
        return sum(map(held_bytes, source.pictures))
    return memoryview(source).nbytes if isinstance(source, bytes | bytearray | memoryview) else 0


def hold_clip(source: ClipSource, picture: PictureConfig) -> ClipSource:
    """A clip that whoever handed it over may go on with. Raises ImageError."""
    if isinstance(source, ClipFrames):
        return ClipFrames(tuple(hold(frame, picture) for frame in source.pictures), source.seconds)
    return bytes(source) if isinstance(source, bytearray | memoryview) else source


def _given(source: ClipFrames, picture: PictureConfig, check: Check) -> tuple[Frames, Shown]:
    first = open_image(source.pictures[0], picture)
    check(len(source.pictures), first.width, first.height)
    pictures = (first, *(open_image(frame, picture) for frame in source.pictures[1:]))
    if any(frame.size != first.size for frame in pictures):
        raise RequestError("the frames of a clip are of several sizes; scale them to one")
    times = source.times()
    length = times[-1] + 1 / source.rate()
    return Frames(pictures, times, length, source.rate()), Shown(tuple(range(len(pictures))), times)


def read_clip_source(text: str, allow_http: bool) -> ClipSource:
    """What `text` names: a path, in which ~ is the home directory, a URL, or - for standard input. Raises ImageError.

    allow_http: whether http and https URLs are fetched, too.
    """
    if text.partition(":")[0].lower() in ("data", "http", "https"):
        from engine.runtime.image_url import CLIP, EVERY_HOST, NO_HOST, fetch  # what speaks HTTP is slow to import

        return fetch(text, EVERY_HOST if allow_http else NO_HOST, medium=CLIP)
    source = read_source(text, allow_http)
    assert isinstance(source, Path | bytes), source
    return source
