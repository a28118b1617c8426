"""PNG: what its header says before it is decoded, and the chunks that its pixels need."""

from collections.abc import Iterator

from engine.runtime.images.limits import MAX_SEGMENTS, Unfit, check_size
from engine.runtime.images.stored import Joined, Stored

SIGNATURE = 8
END = b"\0\0\0\0IEND\xaeB`\x82"


def read_png(stored: Stored) -> tuple[Joined, bytes]:
    """The file with nothing but what pixels depend on, and its EXIF. Raises Unfit for what would cost too much."""
    header = stored.at(0, 24)
    if header[SIGNATURE + 4 : SIGNATURE + 8] != b"IHDR":
        raise Unfit("is a PNG without a header; it is damaged or cut off")
    check_size(int.from_bytes(header[16:20]), int.from_bytes(header[20:24]))
    kept, exif = [header[:SIGNATURE]], b""
    first, last = stored.size, stored.size
    for kind, start, end in _chunks(stored):
        if kind == b"IDAT":
            first = min(first, start)
            continue
        if first < stored.size:
            last = min(last, start)
        elif start == SIGNATURE or kind in (b"PLTE", b"tRNS"):
            kept.append(stored.at(start, end))
        if kind == b"eXIf" and not exif:
            exif = stored.at(start + 8, end - 4)
    if first == stored.size:
        raise Unfit("is a PNG that ends before its pixels; it is damaged or cut off")
    return Joined(b"".join(kept), stored, first, last, END), exif


def _chunks(stored: Stored) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each; the last may be cut off. Raises Unfit for too many."""
    start = SIGNATURE
    for _ in range(MAX_SEGMENTS):
        head = stored.at(start, start + 8)
        kind, end = head[4:], start + 12 + int.from_bytes(head[:4])
        if len(kind) < 4:
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise Unfit(f"is a PNG of more than {MAX_SEGMENTS:,} chunks; save it again")
