"""Pictures that strangers send: each ends as a picture or as one sentence."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageError
from engine.runtime.images import MAX_PIXELS, open_image


def png(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_each_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for source in (path, str(path), png(), Image.open(path)):
        assert open_image(source).size == (40, 30)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (png()[:-400], "cannot be decoded"),
        (png()[:20], "cannot be decoded|not a picture"),
        (b"", "not a picture"),
        (b"hello, I am no picture", "not a picture"),
        (bomb(10_000), "10000 x 10000 pixels"),
        (bomb(100_000), "too large to decode safely"),
    ],
)
def test_broken_pictures(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=sentence) as raised:
        open_image(path)
    assert "broken.png" in str(raised.value)
    with pytest.raises(ImageError, match="the picture"):
        open_image(data)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            open_image(path)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], np.zeros((3, 3, 3), np.uint8)])
def test_what_cannot_be_a_picture_says_so(source: Any) -> None:
    with pytest.raises(ImageError, match=f"cannot be a {type(source).__name__}; give a path"):
        open_image(source)


def test_open_pictures_are_checked_too() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(ImageError, match="scale it below"):
        open_image(Image.new("1", (side, side)))
