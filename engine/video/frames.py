"""Chosen frames of a clip: by decoding on where the next one is near, by seeking where it lies behind a key frame."""

from collections.abc import Callable, Iterator, Sequence

from av.video.frame import VideoFrame

from engine.video.container import Opened
from engine.video.timeline import Timeline

NOWHERE = -(1 << 63)


class Frames:
    """A clip that is decoded forwards: what is asked for ascends. Two frames are held at most."""

    def __init__(self, opened: Opened, reopen: Callable[[], Opened], timeline: Timeline) -> None:
        """opened: read to its end. reopen: gives it anew, from the start."""
        self._opened, self._reopen, self._timeline = opened, reopen, timeline
        self._seeks = timeline.is_timed()
        self._decoded: Iterator[VideoFrame] = iter(())
        self._held: VideoFrame | None = None
        """The last that begins no later than what was asked for."""
        self._ahead: VideoFrame | None = None
        """The one behind it, if it is decoded already."""
        self._position, self._number = NOWHERE, -1
        self._chosen: set[int] | None = None
        if not self._seeks:
            self._restart()

    def choose(self, indices: Sequence[int]) -> None:
        """What will be asked for from now on, and nothing else."""
        if self._timeline.is_timed():
            self._chosen = {self._timeline.times[index] for index in indices}

    def at(self, index: int) -> VideoFrame | None:
        """What is shown when this frame is due: where it cannot be decoded, the one before it, else the one behind it;
        none where nothing can be decoded at all."""
        if not self._timeline.is_timed():
            return self._numbered(index)
        time = self._timeline.times[index]
        key = self._timeline.key_before(time)
        if self._seeks and key > self._position:
            self._seek(key)
        shown = self._shown(time)
        if shown is None and self._seeks:  # it landed behind what was asked for
            self._restart()
            shown = self._shown(time)
        return shown or self._ahead

    def _seek(self, key: int) -> None:
        before, self._position = self._position, key
        self._opened.container.seek(key, stream=self._opened.stream)
        self._decoded, self._held = self._timed(), None
        self._ahead = next(self._decoded, None)
        if self._ahead is not None and _time(self._ahead) < before:
            self._seeks = False  # a container without an index goes back further than is gained

    def _restart(self) -> None:
        self._seeks = False
        self._opened.container.close()
        self._opened = self._reopen()
        self._decoded, self._held, self._ahead = self._timed(), None, None

    def _timed(self) -> Iterator[VideoFrame]:
        frames = self._opened.frames(lambda time: self._chosen is None or time in self._chosen)
        return (frame for frame in frames if frame.pts is not None or not self._timeline.is_timed())

    def _shown(self, time: int) -> VideoFrame | None:
        while self._held is None or _time(self._held) < time:
            if self._ahead is None:
                self._ahead = next(self._decoded, None)
            if self._ahead is None or _time(self._ahead) > time:
                break
            self._held, self._ahead = self._ahead, None
            self._position = max(self._position, _time(self._held))
        return self._held

    def _numbered(self, index: int) -> VideoFrame | None:
        while self._number < index and (frame := next(self._decoded, None)) is not None:
            self._held = frame
            self._number += 1
        return self._held


def _time(frame: VideoFrame) -> int:
    """When a frame of a clip with times is shown."""
    assert frame.pts is not None, "frames without a time are left out"
    return frame.pts
