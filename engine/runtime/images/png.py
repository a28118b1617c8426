"""PNG: what its header says before it is decoded, and the chunks that its pixels need."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.runtime.images.limits import MAX_SEGMENTS, Unfit, check_size

SIGNATURE = 8
END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Png:
    """data: the file with the chunks that pixels depend on. exif: empty where there is none."""

    data: bytes
    exif: bytes


def read_png(data: bytes) -> Png:
    """Raises Unfit for what would cost too much, or is cut off before its pixels begin."""
    if data[SIGNATURE + 4 : SIGNATURE + 8] != b"IHDR":
        raise Unfit("is a PNG without a header; it is damaged or cut off")
    check_size(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    kept, exif = [data[:SIGNATURE]], b""
    first, last = len(data), len(data)
    for kind, start, end in _chunks(data):
        if kind == b"IDAT":
            first = min(first, start)
            continue
        if first < len(data):
            last = min(last, start)
        elif start == SIGNATURE or kind in (b"PLTE", b"tRNS"):
            kept.append(data[start:end])
        if kind == b"eXIf" and not exif:
            exif = data[start + 8 : end - 4]
    if first == len(data):
        raise Unfit("is a PNG that ends before its pixels; it is damaged or cut off")
    return Png(b"".join([*kept, data[first:last], END]), exif)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each; the last may be cut off. Raises Unfit for too many."""
    start = SIGNATURE
    for _ in range(MAX_SEGMENTS):
        kind, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4])
        if len(kind) < 4:
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise Unfit(f"is a PNG of more than {MAX_SEGMENTS:,} chunks; save it again")
