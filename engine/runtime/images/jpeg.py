"""JPEG: what its markers say before it is decoded, and the segments that its pixels need."""

import re
from dataclasses import dataclass

from engine.runtime.images.limits import MAX_SCANNED, MAX_SCANS, MAX_SEGMENTS, Unfit, check_size
from engine.runtime.images.stored import BLOCK, Joined, Stored

START, END, SCAN, EXIF, ADOBE = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
ALONE = {0x01, START, *range(0xD0, 0xD8)}
"""Markers without a segment."""
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within a scan: everything else that begins with 0xFF belongs to its data."""


@dataclass
class _Header:
    """kept: segments that pixels depend on. frame: the one that says their size. first_scan: where pixels begin."""

    kept: list[bytes]
    exif: bytes = b""
    frame: bytes = b""
    first_scan: int = -1
    components: int = 0
    """Of the first scan."""


def read_jpeg(stored: Stored) -> tuple[Joined, bytes]:
    """The file with nothing but what pixels depend on, and its EXIF. Raises Unfit for what would cost too much."""
    size, header = BLOCK, None
    while header is None:
        header = _read_header(stored.at(0, size), whole=size >= stored.size)
        size *= 16
    frame = header.frame
    if len(frame) < 10:
        raise Unfit("is a JPEG without a frame; it is damaged")
    height, width = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    check_size(width, height)
    if frame[4] != 8:
        raise Unfit(f"is a JPEG of {frame[4]} bits per colour, which Pillow cannot read; convert it to PNG")
    if frame[1] in PROGRESSIVE or header.components < frame[9]:
        _check_scans(stored, header.first_scan, width, height)
    return Joined(b"".join(header.kept), stored, header.first_scan, stored.size), header.exif


def _read_header(data: bytes, whole: bool) -> _Header | None:
    """Everything up to the first scan; None if that is further on than the data. whole: the data is all there is."""
    header, place = _Header([data[:2]]), 2
    for _ in range(MAX_SEGMENTS):
        place = data.find(b"\xff", place)
        if place < 0 or place + 5 > len(data):
            if not whole:
                return None
            raise Unfit("is a JPEG that ends before its pixels; it is damaged or cut off")
        marker = data[place + 1]
        if marker in (0, 0xFF) or marker in ALONE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == END:
            raise Unfit("is a JPEG without pixels; it is damaged or cut off")
        if marker == SCAN:
            header.first_scan, header.components = place, data[place + 4]
            return header
        end = max(place + 4, place + 2 + int.from_bytes(data[place + 2 : place + 4]))
        segment = data[place:end]
        if marker in FRAMES:
            if header.frame:
                raise Unfit("is a JPEG of several frames; it is damaged")
            header.frame = segment
        if marker == EXIF and segment[4:10] == b"Exif\0\0" and not header.exif:
            header.exif = segment[4:]
        if _matters(marker, segment):
            header.kept.append(segment)
        place = end
    raise Unfit(f"is a JPEG of more than {MAX_SEGMENTS:,} segments; save it again")


def _matters(marker: int, segment: bytes) -> bool:
    """Whether the pixels depend on a segment: none but these two of applications says how they are stored."""
    if marker == 0xE0:
        return segment[4:9] == b"JFIF\0"
    return marker < 0xE0 or (marker == ADOBE and segment[4:9] == b"Adobe")


def _check_scans(stored: Stored, first: int, width: int, height: int) -> None:
    """Raises Unfit for too many."""
    padded = (width + 15) // 16 * (height + 15) // 16 * 256
    most = max(1, min(MAX_SCANS, MAX_SCANNED // padded))
    scans, last = 0, b""
    for block in stored.blocks(first):
        scans += block.count(b"\xff\xda") + (last + block[:1] == b"\xff\xda")
        last = block[-1:]
    # What follows the picture in the file, such as another one or a film, may hold the same bytes.
    if scans > most and _has_more_scans(stored.whole(), first, most):
        raise Unfit(f"is a JPEG of more than {most:,} scans; save it with fewer, or not as a progressive one")


def _has_more_scans(data: bytes, place: int, most: int) -> bool:
    scans = 0
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, place)
        if found is None or data[found.start() + 1] == END:
            return False
        place = found.end()
        scans += data[place - 1] == SCAN
        if scans > most:
            return True
        if data[place - 1] not in ALONE:
            place += int.from_bytes(data[place : place + 2])
    return True
