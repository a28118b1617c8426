"""When each frame of a clip is shown, counted by going once over its packets without decoding them."""

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction

import av
from av.packet import Packet

from engine.runtime.images.limits import Unfit
from engine.video.container import Opened
from engine.video.limits import MOST_FRAMES

LIKELY = 0.01
"""How far a container's frames per second may be from those that are counted, to be what they are rounded from."""

VP8 = av.codec.Codec("vp8", "r").id


@dataclass(frozen=True)
class Timeline:
    """Times are whole numbers of the stream's unit of seconds.

    times: of all frames, ascending; none where the container has none. keys: those at which decoding can begin, at
    least one of them. end: of the last frame. frames: as many as can be chosen. claimed: frames per second, as the
    container says.
    """

    times: "array[int]"
    keys: "array[int]"
    end: int
    frames: int
    unit: Fraction
    claimed: Fraction | None

    def is_timed(self) -> bool:
        return len(self.times) > 0

    def rate(self) -> float:
        """Frames per second, on average."""
        claimed = float(self.claimed or 0)
        if not self.is_timed():
            return claimed or 1.0
        counted = self.frames / span if (span := self.span()) > 0 else claimed or 1.0
        return claimed if abs(claimed / counted - 1) <= LIKELY else counted

    def span(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.end - self.times[0]) * self.unit) if self.is_timed() else self.frames / self.rate()

    def seconds(self, index: int) -> float:
        """From when the first frame is shown."""
        return float((self.times[index] - self.times[0]) * self.unit) if self.is_timed() else index / self.rate()

    def key_before(self, time: int) -> int:
        """Where decoding begins for what is shown then."""
        return self.keys[max(0, bisect_right(self.keys, time) - 1)]


def count(opened: Opened) -> Timeline:
    """Raises Unfit for a stream without frames, or with too many."""
    times, keys, packets, last = array("q"), array("q"), 0, (-1 << 63, 0)
    for packet in opened.packets():
        packets += 1
        if packets > MOST_FRAMES:
            raise Unfit(f"has more than {MOST_FRAMES:,} frames; cut it")
        if packet.pts is None or packet.is_discard or _is_hidden(packet):
            continue
        times.append(packet.pts)
        last = max(last, (packet.pts, packet.duration or 0))
        if packet.is_keyframe:
            keys.append(packet.pts)
    if not packets:
        raise Unfit("has no frames; it is empty or cut off")
    unit, claimed = Fraction(opened.stream.time_base or 1), opened.stream.average_rate
    if 2 * len(times) < packets or not _has_times(opened):
        return Timeline(array("q"), array("q"), 0, packets, unit, claimed)
    ordered = array("q", sorted(set(times)))
    usual = (ordered[-1] - ordered[0]) // max(1, len(ordered) - 1)
    end = ordered[-1] + (last[1] or usual)
    return Timeline(ordered, array("q", sorted(set(keys))) or ordered[:1], end, len(ordered), unit, claimed)


def _has_times(opened: Opened) -> bool:
    """AVI tells in which order frames are decoded, which is not that in which they are shown if some look ahead."""
    return opened.container.format.name != "avi" or not opened.stream.codec_context.has_b_frames


def _is_hidden(packet: Packet) -> bool:
    """A frame of VP8 that is never shown, only used by others, is a packet of its own; its fifth bit says so."""
    return packet.stream.codec_context.codec.id == VP8 and not bytes(packet)[0] & 0x10
