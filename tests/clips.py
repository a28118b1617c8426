"""Clips, made as they are needed."""

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import av
import numpy as np

av.logging.set_level(None)

CODECS = {
    "H.264": ("libx264", "mp4"),
    "HEVC": ("libx265", "matroska"),
    "VP9": ("libvpx-vp9", "webm"),
    "MPEG-4": ("mpeg4", "avi"),
    "MPEG-2": ("mpeg2video", "mpegts"),
    "AV1": ("libsvtav1", "mp4"),
    "VP8": ("libvpx", "webm"),
}
"""By its name, FFmpeg's names of an encoder and of a container."""

QUIET = {"libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"}}
"""Options of encoders that would talk."""

KEYS = 10
"""Frames from one key frame to the next."""


def drawn(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [H,W,3]: a picture of which each number has its own, and the decoder's errors do not hide which."""
    y, x = np.mgrid[:height, :width]
    step = 7 * number
    return np.stack([(2 * x + step) % 256, (2 * y + 3 * step) % 256, (x + y + 5 * step) % 256], -1).astype(np.uint8)


def clip(
    codec: str = "libx264",
    container: str = "mp4",
    frames: int = 30,
    size: tuple[int, int] = (96, 64),
    rate: Fraction | int = 30,
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a file. times: of each frame in milliseconds, instead of as many for each second as `rate` says."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as written:
        stream = written.add_stream(codec, rate=rate, options={**QUIET.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = KEYS
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn(number, *size), "rgb24").reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    return file.getvalue()


def plain(colour: tuple[int, int, int], options: Mapping[str, str]) -> bytes:
    """Of one luma and two chroma values; options: of the encoder."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as written:
        stream = written.add_stream("libx264", rate=10, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane, value in zip(frame.planes, colour, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    return file.getvalue()


def decoded(data: bytes) -> list[np.ndarray]:
    """uint8 [H,W,3] of all frames, decoded one after the other."""
    with av.open(io.BytesIO(data)) as opened:
        return [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]


def sound() -> bytes:
    """A file of sound only."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as written:
        stream = written.add_stream("aac", rate=48000)
        for part in _silence():
            written.mux(stream.encode(part))
        written.mux(stream.encode(None))
    return file.getvalue()


def _silence() -> Iterator[av.AudioFrame]:
    for number in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 1024 * number
        yield frame


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 whose track is to be shown with this display matrix."""
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    place = data.index(b"tkhd") + 4 + 40
    return data[:place] + matrix + data[place + len(matrix) :]
