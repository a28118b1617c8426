"""Clips that are written, not shot: a picture that is moved over a window, coded as cameras do."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

RATE = 30
KEYS = 250
"""Frames from one key frame to the next, at most: FFmpeg's default for H.264."""

DRAWN_SECONDS = 10
"""What is encoded; longer clips repeat it."""

SPEED = 2
"""Pixels from one frame to the next."""


def write_clip(path: Path, size: tuple[int, int], seconds: int, on_progress: Callable[[float], None]) -> None:
    """H.264 in MP4, of a multiple of DRAWN_SECONDS, or of less."""
    frames, drawn = RATE * min(seconds, DRAWN_SECONDS), io.BytesIO()
    scene = _scene(size, frames)
    with av.open(drawn, "w", format="mp4") as written:
        stream = written.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = KEYS
        for number in range(frames):
            left = SPEED * number
            shown = np.ascontiguousarray(scene[:, left : left + size[0]])
            written.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
            on_progress((number + 1) / frames)
        written.mux(stream.encode(None))
    path.write_bytes(repeated(drawn.getvalue(), max(1, seconds // DRAWN_SECONDS)))


def repeated(data: bytes, times: int) -> bytes:
    """An MP4 whose frames are there so many times, one after the other, without being encoded again."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as opened, av.open(file, "w", format="mp4") as written:
        stream = opened.streams.video[0]
        copied = written.add_stream_from_template(stream)
        packets = [packet for packet in opened.demux(stream) if packet.size]
        content = [(bytes(packet), packet.pts or 0, packet.dts or 0, packet.is_keyframe) for packet in packets]
        unit, span = Fraction(stream.time_base or 1), sum(packet.duration or 0 for packet in packets)
        for turn in range(times):
            for part, shown, decoded, is_key in content:
                packet = av.Packet(part)
                packet.pts, packet.dts, packet.time_base = shown + turn * span, decoded + turn * span, unit
                packet.is_keyframe, packet.stream = is_key, copied
                written.mux(packet)
    return file.getvalue()


def _scene(size: tuple[int, int], frames: int) -> np.ndarray:
    """uint8 [H,W,3], wide enough to move over: smooth colours with fine detail, as in a room."""
    width, height = size[0] + SPEED * frames, size[1]
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (height // grain + 2, width // grain + 2, 3), np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for grain in (64, 4)
    ]
    return (0.75 * layers[0] + 0.25 * layers[1]).astype(np.uint8)
