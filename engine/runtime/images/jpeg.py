"""JPEG: what its markers say before it is decoded, and the segments that its pixels need."""

import re
from dataclasses import dataclass

from engine.runtime.images.limits import MAX_SCANNED, MAX_SCANS, MAX_SEGMENTS, Unfit, check_size

START, END, SCAN, EXIF, ADOBE = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
ALONE = {0x01, START, *range(0xD0, 0xD8)}
"""Markers without a segment."""
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within a scan: everything else that begins with 0xFF belongs to its data."""


@dataclass(frozen=True)
class Jpeg:
    """data: the file with the segments that pixels depend on. exif: empty where there is none."""

    data: bytes
    exif: bytes


def read_jpeg(data: bytes) -> Jpeg:
    """Raises Unfit for what would cost too much, or is cut off before its pixels begin."""
    kept, exif, frame, place = [data[:2]], b"", b"", 2
    for _ in range(MAX_SEGMENTS):
        place = data.find(b"\xff", place)
        if place < 0 or place + 4 > len(data):
            raise Unfit("is a JPEG that ends before its pixels; it is damaged or cut off")
        marker = data[place + 1]
        if marker in (0, 0xFF) or marker in ALONE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == END:
            raise Unfit("is a JPEG without pixels; it is damaged or cut off")
        if marker == SCAN:
            break
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        segment = data[place:end]
        if marker in FRAMES:
            if frame:
                raise Unfit("is a JPEG of several frames; it is damaged")
            frame = segment
        if marker == EXIF and segment[4:10] == b"Exif\0\0" and not exif:
            exif = segment[4:]
        if _matters(marker, segment):
            kept.append(segment)
        place = max(end, place + 2)
    else:
        raise Unfit(f"is a JPEG of more than {MAX_SEGMENTS:,} segments; save it again")
    if len(frame) < 10:
        raise Unfit("is a JPEG without a frame; it is damaged")
    height, width = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    check_size(width, height)
    if frame[4] != 8:
        raise Unfit(f"is a JPEG of {frame[4]} bits per colour, which Pillow cannot read; convert it to PNG")
    if frame[1] in PROGRESSIVE or data[place + 4 : place + 5] < frame[9:10]:
        _check_scans(data, place, width, height)
    return Jpeg(b"".join([*kept, data[place:]]), exif)


def _matters(marker: int, segment: bytes) -> bool:
    """Whether the pixels depend on a segment: none but these two of applications says how they are stored."""
    if marker == 0xE0:
        return segment[4:9] == b"JFIF\0"
    return marker < 0xE0 or (marker == ADOBE and segment[4:9] == b"Adobe")


def _check_scans(data: bytes, place: int, width: int, height: int) -> None:
    """Raises Unfit for too many. place: of the first."""
    padded = (width + 15) // 16 * (height + 15) // 16 * 256
    most = max(1, min(MAX_SCANS, MAX_SCANNED // padded))
    if data.count(b"\xff\xda", place) <= most:
        return
    # What follows the picture in the file, such as another one or a film, may hold the same bytes.
    scans = 0
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, place)
        if found is None or data[found.start() + 1] == END:
            return
        place = found.end()
        scans += data[place - 1] == SCAN
        if scans > most:
            break
        if data[place - 1] not in ALONE:
            place += int.from_bytes(data[place : place + 2])
    raise Unfit(f"is a JPEG of more than {most:,} scans; save it with fewer, or not as a progressive one")
