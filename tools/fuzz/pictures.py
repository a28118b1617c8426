"""Pictures of many formats, cut off or changed in a few places."""

import io
import random
import struct
import warnings
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from engine.config import PictureConfig
from engine.runtime.images import open_image
from tools.fuzz.mutate import spoil_bytes

NAME = "pictures"

HEADER = 64
"""Bytes at the front, which are changed more often."""

OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("RGB", "JPEG", {}),
    "progressive jpeg": ("RGB", "JPEG", {"progressive": True}),
    "grey jpeg": ("L", "JPEG", {}),
    "cmyk jpeg": ("CMYK", "JPEG", {}),
    "mpo": ("RGB", "MPO", {"save_all": True}),
    "png": ("RGB", "PNG", {}),
    "transparent png": ("RGBA", "PNG", {}),
    "palette png": ("P", "PNG", {"transparency": b"\0\x80"}),
    "deep png": ("I;16", "PNG", {"transparency": 7}),
    "moving png": ("RGB", "PNG", {"save_all": True}),
    "webp": ("RGB", "WEBP", {}),
    "lossless webp": ("RGBA", "WEBP", {"lossless": True}),
    "moving webp": ("RGB", "WEBP", {"save_all": True}),
    "gif": ("P", "GIF", {"transparency": 3}),
    "moving gif": ("P", "GIF", {"save_all": True}),
    "bmp": ("RGB", "BMP", {}),
    "palette bmp": ("P", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "lzw tiff": ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
    "jpeg tiff": ("RGB", "TIFF", {"compression": "jpeg"}),
    "fax tiff": ("1", "TIFF", {"compression": "group4"}),
    "deep tiff": ("I;16", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "float tiff": ("F", "TIFF", {}),
    "big tiff": ("L", "TIFF", {"big_tiff": True}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "jpeg 2000": ("RGB", "JPEG2000", {}),
    "deep jpeg 2000": ("I;16", "JPEG2000", {"no_jp2": True}),
    "ppm": ("RGB", "PPM", {}),
    "deep pgm": ("I", "PPM", {}),
    "pbm": ("1", "PPM", {}),
    "pfm": ("F", "PPM", {}),
    **{name: ("RGB", name, {}) for name in ("EPS", "ICNS", "ICO", "PCX", "PDF", "SGI", "TGA", "DDS", "QOI")},
}
"""The mode, format and options of each kind of file; the last are formats that are not read."""


@cache
def files() -> list[bytes]:
    """One of each kind, with metadata where the format has any."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((24, 18), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    for mode, format, options in OPTIONS.values():
        picture = smooth.convert("L").convert("I").convert(mode) if mode.startswith("I;") else smooth.convert(mode)
        more: dict[str, Any] = {"exif": exif} if format in ("JPEG", "MPO", "PNG", "WEBP", "AVIF") else {}
        if "save_all" in options:
            more["append_images"] = [picture.transpose(Image.Transpose.ROTATE_180)]
        file = io.BytesIO()
        picture.save(file, format, **options, **more)
        made.append(file.getvalue())
    return [*made, b"P3 2 2 255 0 10 20 30 40 50 60 70 80 90 100 110", b"P6 2 2 100 " + bytes(range(12))]


def make(seed: int) -> bytes:
    rng = random.Random(seed)
    data = rng.choice(files())
    match rng.randrange(4):
        case 0:
            return data[: rng.randrange(len(data))]
        case 1:
            data = spoil_bytes(rng, data[:HEADER]) + data[HEADER:]
        case _:
            data = spoil_bytes(rng, data)
    return _mended(data) if rng.random() < 0.7 else data


def run(case: bytes) -> None:
    """Open the bytes with options that they choose; now and then as a picture that Pillow has opened already."""
    choice = zlib.crc32(case)
    picture = PictureConfig(auto_orient=bool(choice & 1), background=(1, 2, 3) if choice & 2 else None)
    source: bytes | Image.Image = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if choice & 4 and choice & 8 else "error")
        if choice & 4 and choice & 8:
            try:
                source = Image.open(io.BytesIO(case))
            except Exception:  # of Pillow, before the engine sees anything
                return
        opened = open_image(source, picture)
    assert opened.mode == "RGB" and len(opened.tobytes()) == 3 * opened.width * opened.height


def _mended(data: bytes) -> bytes:
    """A PNG with check sums that fit, so that what was changed is read."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        parts.append(data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(parts)
