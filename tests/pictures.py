"""Pictures for tests: noise in every format, and files whose headers claim what is not there."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int) -> Image.Image:
    """Colours that resemble a picture's: smooth, with some noise."""
    rng = np.random.default_rng(width * height)
    smooth = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)
    grown = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.asarray(grown) ^ rng.integers(0, 16, (height, width, 3), np.uint8))


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """Two frames in the format that is made for them."""
    file = io.BytesIO()
    if format == "MPO":
        options |= {"save_all": True, "append_images": [picture]}
    picture.save(file, format, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    return encoded(noise(width, height), "PNG")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of a few hundred bytes whose header claims so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    chunks = png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
