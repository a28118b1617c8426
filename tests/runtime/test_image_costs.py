"""Small files that would cost much are refused before they are decoded, or while they are."""

import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageError
from engine.runtime.images import decoder, open_image
from engine.runtime.images.decoder import Decoders
from engine.runtime.images.formats import Format
from engine.runtime.images.limits import MAX_BYTES, Budget, Unfit
from engine.runtime.images.opening import PUBLISHED
from engine.runtime.images.stored import Stored
from tests.pictures import encoded, noise, png_chunk, png_claiming, png_of


def progressive(side: int, scans: int) -> bytes:
    """A JPEG whose last scan is there so many times more."""
    data = encoded(Image.new("RGB", (side, side), (9, 99, 199)), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


def in_jpeg(inserted: bytes) -> bytes:
    """A JPEG with something more before its first segment."""
    return SMALL_JPEG[:2] + inserted + SMALL_JPEG[2:]


def webp(chunk: bytes) -> bytes:
    return b"RIFF\x1e\0\0\0WEBP" + chunk + bytes(8)


def run_length_bmp(runs: int) -> bytes:
    """5000 x 5000 pixels, of which the first are there one by one."""
    header = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + header + bytes(1024) + b"\1\0" * runs


SMALL_JPEG = encoded(noise(40, 30), "JPEG")
HUGE_JPEG2000 = encoded(Image.new("RGB", (80, 80)), "JPEG2000").replace(b"\0\0\0\x50" * 2, b"\0\0\x1f\x40" * 2)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "pixels": (lambda: png_claiming(10_000, 10_000), "has 10000 x 10000 pixels"),
    "more pixels": (lambda: png_claiming(100_000, 100_000), "has 100000 x 100000 pixels"),
    "one column": (lambda: png_claiming(1, 64_000_000), "has 1 x 64000000 pixels, a side longer"),
    "one row": (lambda: png_claiming(64_000_000, 1, 16, 6), "has 64000000 x 1 pixels, a side longer"),
    "negative": (lambda: png_claiming(1 << 31, 1), "has 2147483648 x 1 pixels"),
    "scans": (lambda: progressive(1000, 1001), "is a JPEG of more than 1,000 scans"),
    "large scans": (lambda: progressive(4000, 60), "is a JPEG of more than 63 scans"),
    "comments": (lambda: in_jpeg(b"\xff\xfe\0\2" * 70_000), "is a JPEG of more than 65,536 segments"),
    "two frames": (lambda: in_jpeg(b"\xff\xc0\0\x0b\x08\0\x10\0\x10\1\1\x11\0"), "is a JPEG of several frames"),
    "12 bits": (lambda: SMALL_JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "is a JPEG of 12 bits"),
    "chunks": (lambda: png_of(4, 3)[:33] + png_chunk(b"tIME", b"") * 70_000, "is a PNG of more than 65,536 chunks"),
    "JPEG 2000": (lambda: HUGE_JPEG2000, "has 8000 x 8000 pixels, more .* below 32,000,000"),
    "WebP": (lambda: webp(b"VP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6), "has 16777216 x 16777216 pixels"),
    "lossless": (lambda: webp(b"VP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f"), "has 16384 x 16384 pixels"),
    "plain PPM": (lambda: b"P3 1500 1500 255\n" + b"10 20 " * 700_000, "is a PPM of a rare kind"),
    "odd PPM": (lambda: b"P6 1500 1500 100\n" + bytes(6_750_000), "is a PPM of a rare kind"),
    "RLE": (lambda: run_length_bmp(2_500_000), "is a BMP of a rare kind"),
    "bytes": (lambda: bytes(MAX_BYTES + 1), "has more than 128,000,000 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_header_tells_is_refused_before_decoding(name: str) -> None:
    make, sentence = HOSTILE[name]
    data = make()
    with pytest.raises(ImageError, match=f"^the picture {sentence}"):
        open_image(data)


def test_files_are_measured_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match=r"large\.png has more than"):
        open_image(path)


def test_as_many_scans_as_encoders_write_are_read() -> None:
    for data in (encoded(noise(400, 300), "JPEG", progressive=True, quality=95), progressive(200, 900)):
        np.testing.assert_array_equal(open_image(data), np.asarray(Image.open(io.BytesIO(data))))


def test_what_follows_a_jpeg_has_no_scans() -> None:
    data = encoded(noise(40, 30), "JPEG", progressive=True)
    np.testing.assert_array_equal(open_image(data + b"\xff\xda" * 5000), open_image(data))


def test_noise_between_the_segments_of_a_jpeg_is_passed_over() -> None:
    data = in_jpeg(b"\xff\xff\xff\xfe\0\4ab" + bytes(100_000) + b"\xff\0\xff\xd0")
    np.testing.assert_array_equal(open_image(data), open_image(SMALL_JPEG))


def test_memory_is_limited() -> None:
    decoders = Decoders(1, Budget(bytes=250_000_000))
    with pytest.raises(Unfit, match="needs more than 250,000,000 bytes to be decoded"):
        decoders.decode(Stored.of(png_claiming(7990, 7990, 8, 6)), Format.PNG, PUBLISHED)
    assert decoders.decode(Stored.of(encoded(noise(40, 30), "GIF")), Format.GIF, PUBLISHED).size == (40, 30)
    decoders.close()


ENDLESS = """import sys
    from engine.runtime.images import decoder_process
    decoder_process.decode = lambda *request: [None for _ in iter(int, 1)]
    decoder_process.main(*map(int, sys.argv[1:]))"""
CRASHED = "cannot be decoded (its decoder crashed); it is damaged"


@pytest.mark.parametrize(
    ("program", "budget", "sentence"),
    [
        (ENDLESS, Budget(seconds=0), "takes more than 0 seconds to decode; convert it to PNG or JPEG"),
        ("import time; time.sleep(600)", Budget(patience=1), "takes more time or memory to decode than a picture may"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Budget(), CRASHED),
        ("import sys; sys.stdout.write('nonsense')", Budget(), CRASHED),
        ("print('{}')", Budget(), CRASHED),
        ("print('[]')", Budget(), CRASHED),
        ("print('{\"size\": [9, 9]}')", Budget(), CRASHED),
        ("print('{\"size\": [99999, 99999]}')", Budget(), "has 99999 x 99999 pixels"),
    ],
)
def test_a_decoder_that_ends_or_hangs_is_replaced(
    program: str, budget: Budget, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = ModuleType("stand_in_decoder")
    stand_in.__file__ = str(tmp_path / "package" / "module.py")
    (tmp_path / "stand_in_decoder.py").write_text(f"if __name__ == '__main__':\n    {program}\n")
    monkeypatch.setattr(decoder, "NEEDED", (*decoder.NEEDED, stand_in))
    decoders = Decoders(1, budget, stand_in.__name__)
    for _ in range(2):
        with pytest.raises(Unfit) as raised:
            decoders.decode(Stored.of(encoded(noise(40, 30), "GIF")), Format.GIF, PUBLISHED)
        assert str(raised.value).startswith(sentence)
    decoders.close()


def test_a_decoder_that_dies_while_it_waits_is_replaced() -> None:
    decoders, data = Decoders(1), encoded(noise(40, 30), "GIF")
    decoders.decode(Stored.of(data), Format.GIF, PUBLISHED)
    (waiting,) = decoders._idle
    waiting.stop()
    assert decoders.decode(Stored.of(data), Format.GIF, PUBLISHED).size == (40, 30)
    decoders.close()


def test_one_bad_picture_disturbs_no_other() -> None:
    pictures = [encoded(noise(40 + index, 30), "TIFF") for index in range(8)]
    bad = [data[:-200] for data in pictures] + [b"II*\0" + bytes(100)]

    def opened(data: bytes) -> str | np.ndarray:
        try:
            return np.asarray(open_image(data))
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(opened, [part for both in zip(pictures, bad[:8], strict=True) for part in both] * 4))
    for place, outcome in enumerate(outcomes):
        if place % 2:
            assert isinstance(outcome, str) and "cannot be decoded" in outcome
        else:
            np.testing.assert_array_equal(outcome, noise(40 + place % 16 // 2, 30))
