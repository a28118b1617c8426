"""What a process that reads a clip is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """file: number of the open file. demuxer: as FFmpeg calls it. seconds: of processor time. memory: bytes of
    addresses. pixels: of a frame. threads: that decode."""

    file: int
    demuxer: str
    seconds: int
    memory: int
    pixels: int
    threads: int
