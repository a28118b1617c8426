"""A clip as FFmpeg opens it: one container of a known kind, nothing that it names, and only codecs that are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from engine.runtime.images.limits import Unfit
from engine.runtime.words import short
from engine.video.formats import CODECS

ATTACHED = av.stream.Disposition.attached_pic
"""A picture that lies beside sound."""

WHOLE_FRAMES = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers whose packets are whole frames, never the lines of one half of it."""


@dataclass(frozen=True)
class Opened:
    """The stream of pictures of an open container."""

    container: InputContainer
    stream: VideoStream

    def packets(self) -> Iterator[Packet]:
        """From where the container stands to its end, or to where it is cut off."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except MemoryError:
                raise
            except av.FFmpegError:
                return
            if packet is None:
                return
            if packet.size:
                yield packet

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[VideoFrame]:
        """What can be decoded from where the container stands, in the order in which it is shown; of frames that are
        not wanted at their time, those that no other is made of may be left out."""
        context = self.stream.codec_context
        leaves_out = self.container.format.name in WHOLE_FRAMES
        for packet in self.packets():
            if leaves_out:
                context.skip_frame = "DEFAULT" if packet.pts is None or wanted(packet.pts) else "NONREF"
            yield from _decode(context, packet)
        yield from _decode(context, None)


def _decode(context: VideoCodecContext, packet: Packet | None) -> list[VideoFrame]:
    """None of one that is damaged: those behind it may not be. Raises MemoryError."""
    try:
        return context.decode(packet)
    except MemoryError:
        raise
    except av.FFmpegError:
        return []


def open_clip(file: BinaryIO, demuxer: str, threads: int) -> Opened:
    """Raises Unfit, or whatever FFmpeg may raise for what is damaged."""
    file.seek(0)
    options = {"format_whitelist": demuxer, "codec_whitelist": ",".join(CODECS), "protocol_whitelist": ""}
    # What a clip says of itself is not read, whatever letters it is in.
    container = av.open(
        file, "r", format=demuxer, container_options=options, metadata_errors="replace", io_open=_open_nothing
    )
    pictures = [stream for stream in container.streams.video if not stream.disposition & ATTACHED]
    if not pictures:
        raise Unfit("has no moving pictures, only sound or text; give a clip")
    stream = pictures[0]
    name = "something unknown" if stream.codec_context is None else stream.codec_context.name
    if name not in CODECS:
        raise Unfit(f"is coded as {short(name)}, which is not read; convert it to H.264")
    stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
    return Opened(container, stream)


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"a clip names another file, {short(url)}")
