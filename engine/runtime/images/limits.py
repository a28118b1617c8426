"""What one picture may cost. All that a header tells is checked before anything is decoded."""

from dataclasses import dataclass

MAX_PIXELS = 64_000_000
"""More than any camera's picture; decoding it takes 256 MB."""

MAX_SIDE = 65_535
"""JPEG's own limit. Resizing builds a table with an entry for every row and column."""

MAX_BYTES = 128_000_000
"""Of a file: twice the pixels, more than a camera writes without compression."""

MAX_SEGMENTS = 65_536
"""Pieces that a file is made of: markers of a JPEG, chunks of a PNG. Pillow visits each in Python."""

MAX_SCANS = 1000
"""Of a JPEG."""

MAX_SCANNED = 16 * MAX_PIXELS
"""Pixels times scans of a JPEG: each scan goes over all of them. Encoders write about 10 scans."""

MAX_PYTHON_BYTES = 4_000_000
"""Of a file that Pillow decodes in Python, about a microsecond for each."""


@dataclass(frozen=True)
class Budget:
    """Of a picture that is decoded in a process of its own."""

    seconds: int = 10
    """Of processor time."""
    bytes: int = 1_000_000_000
    """Of addresses, for the whole process."""
    patience: float = 60.0
    """Seconds until the process is given up, however little of the processor it got."""


class Unfit(Exception):
    """Why a picture is refused, as the sentence that its name begins."""


def check_size(width: int, height: int, pixels: int = MAX_PIXELS) -> None:
    """Raises Unfit for a picture without pixels, or too large to decode safely."""
    if width < 1 or height < 1:
        raise Unfit(f"has no pixels ({width} x {height}); give another one")
    if width * height > pixels:
        raise Unfit(f"has {width} x {height} pixels, more than can be decoded safely; scale it below {pixels:,} pixels")
    if max(width, height) > MAX_SIDE:
        raise Unfit(f"has {width} x {height} pixels, a side longer than {MAX_SIDE:,}; scale it down or cut it")
