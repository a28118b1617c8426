"""Opening pictures: whatever is handed over ends as an RGB picture of one's own, or as one sentence."""

import io
import multiprocessing
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.config import PictureConfig
from engine.errors import ImageError, RequestError
from engine.runtime.images import open_image, read_source
from engine.runtime.images import source as sources
from engine.runtime.images.limits import MAX_PIXELS
from tests.pictures import encoded, noise, png_of

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO"]


def test_each_kind_of_source(tmp_path: Path) -> None:
    picture = noise(40, 30)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture, "PNG"))
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), Image.open(path), picture, np.asarray(picture)):
        opened = open_image(source)  # type: ignore[arg-type]
        assert opened.mode == "RGB" and opened is not source
        np.testing.assert_array_equal(opened, picture)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA", "P", "CMYK", "LA"])
def test_pixels_are_pillows(format: str, mode: str) -> None:
    try:
        data = encoded(noise(60, 45).convert(mode), format)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"Pillow writes no {format} of mode {mode}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(open_image(data), expected)


def test_what_the_pixels_do_not_need_changes_nothing() -> None:
    picture = noise(50, 40)
    exif = Image.Exif()
    exif[0x010E] = "a scene"
    plain, full = (
        encoded(picture, "JPEG", progressive=True, **extras)
        for extras in ({}, {"exif": exif, "icc_profile": b"profile" * 20_000, "comment": b"seen", "dpi": (90, 90)})
    )
    assert len(full) > len(plain) + 100_000
    np.testing.assert_array_equal(open_image(full), open_image(plain))


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_palettes_and_transparency_are_read_without_a_warning(mode: str) -> None:
    picture = noise(30, 20).quantize(200) if mode == "P" else noise(30, 20).convert(mode)
    data = encoded(picture, "PNG", transparency={"P": bytes(range(200)), "RGB": (1, 2, 3), "L": 7}[mode])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened, copied = open_image(data), open_image(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(opened, picture.convert("RGB"))
    np.testing.assert_array_equal(copied, picture.convert("RGB"))


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_are_copied(channels: int | None) -> None:
    shape = (20, 30) if channels is None else (20, 30, channels)
    numbers = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    opened = open_image(numbers[:, ::-1])
    colours = numbers[:, ::-1].reshape(20, 30, -1)[..., :3]
    np.testing.assert_array_equal(opened, np.broadcast_to(colours, (20, 30, 3)))
    before = np.array(opened)
    numbers[:] = 0
    np.testing.assert_array_equal(opened, before)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (np.zeros((3, 3, 3), np.float32), "is an array of float32; give uint8"),
        (np.zeros((3, 3, 2), np.uint8), r"is an array of shape \[3, 3, 2\]"),
        (np.zeros((1, 3, 3, 3), np.uint8), r"is an array of shape \[1, 3, 3, 3\]"),
        (np.zeros((0, 3, 3), np.uint8), r"has no pixels \(3 x 0\)"),
        (np.zeros((1, 70_000), np.uint8), "has 70000 x 1 pixels, a side longer than 65,535"),
        (np.array("x"), "is an array of <U1"),
    ],
)
def test_arrays_that_are_no_picture(numbers: np.ndarray, sentence: str) -> None:
    with pytest.raises(ImageError, match=f"^the picture {sentence}"):
        open_image(numbers)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (png_of(40, 30)[:-400], "cannot be decoded"),
        (png_of(40, 30)[:20], "has no pixels|ends before"),
        (b"", "is empty"),
        (b"hello, I am no picture", "is not a picture; JPEG, PNG"),
        (b"%PDF-1.7 and so on", "is a PDF and not a picture; JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript and not"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC picture; JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "is a video and not"),
        (encoded(noise(40, 30), "ICO"), "is an icon and not"),
        (encoded(noise(40, 30), "JPEG")[:-100], "cannot be decoded"),
        (encoded(noise(40, 30), "JPEG")[:100], "ends before its pixels"),
        (encoded(noise(40, 30), "TIFF")[:-100], "cannot be decoded"),
        (encoded(noise(40, 30), "AVIF")[:-100], "cannot be decoded"),
        (encoded(noise(40, 30), "JPEG2000")[:-800], "cannot be decoded"),
        (encoded(noise(40, 30), "WEBP")[:-100], "cannot be decoded"),
    ],
)
def test_broken_pictures(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=sentence) as raised:
        open_image(path)
    assert "broken.png" in str(raised.value)
    with pytest.raises(ImageError, match=r"^the picture"):
        open_image(data)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            open_image(path)
    for text in ("a\0b", "x" * 5000, "a\nb", "\udc80.png"):
        with pytest.raises(ImageError) as raised:
            open_image(text)
        assert str(raised.value).isprintable() and len(str(raised.value)) < 300


@pytest.mark.parametrize("url", ["https://example.org/a.png", "data:image/png;base64,AAAA", "file:///a.png"])
def test_a_url_in_the_place_of_a_path_says_so(url: str) -> None:
    for source in (url, Path(url)):
        with pytest.raises(ImageError, match="is a URL, and a path was expected"):
            open_image(source)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], io.BytesIO()])
def test_what_cannot_be_a_picture_says_so(source: Any) -> None:
    with pytest.raises(ImageError, match=f"cannot be a {type(source).__name__}; give a path"):
        open_image(source)


def test_open_pictures_are_checked_too() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(ImageError, match="scale it below"):
        open_image(Image.new("1", (side, side)))
    closed = noise(4, 4)
    closed.close()
    cut = Image.open(io.BytesIO(png_of(40, 30)[:-400]))
    for picture in (closed, cut):
        with pytest.raises(ImageError, match=r"^the picture cannot be decoded"):
            open_image(picture)


def test_an_open_picture_that_a_program_would_draw_is_refused() -> None:
    program = Image.open(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"))
    with pytest.raises(ImageError, match="is EPS, which another program would draw"):
        open_image(program)
    drawn = noise(9, 9)
    drawn.format = "EPS"
    assert open_image(drawn).size == (9, 9)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF"])
def test_one_open_picture_in_many_threads(format: str) -> None:
    """Pillow decodes it when it is first looked at: in each round, by 8 threads at once."""
    data = encoded(noise(300, 200), format)
    expected = np.asarray(open_image(data))
    for _ in range(15):
        lazy, start = Image.open(io.BytesIO(data)), threading.Barrier(8)

        def ask(picture: Image.Image = lazy, start: threading.Barrier = start) -> np.ndarray:
            start.wait()
            return np.asarray(open_image(picture))

        with ThreadPoolExecutor(8) as pool:
            for answer in [pool.submit(ask) for _ in range(8)]:
                np.testing.assert_array_equal(answer.result(), expected)


def test_what_is_opened_belongs_to_the_caller() -> None:
    picture = noise(20, 10)
    before = np.array(picture)
    open_image(picture).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(picture, before)


def test_a_command_lines_words_name_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_of(4, 3)
    (tmp_path / "a b.png").write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read_source("-", False) == data
    assert read_source("~/a b.png", False) == tmp_path / "a b.png"
    assert read_source("a.png", False) == Path("a.png")
    assert read_source(f"file://{tmp_path}/a%20b.png", False) == tmp_path / "a b.png"
    assert read_source("data:,x%20y", False) == b"x y"
    with pytest.raises(ImageError, match=r"^image URL https://example.org/a.png is not fetched"):
        read_source("https://example.org/a.png", False)
    with pytest.raises(ImageError, match="is no path"):
        read_source("~nobody-of-that-name/a.png", False)


def test_a_terminal_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with open(follower) as terminal, open(leader):
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(ImageError, match="there is none; send one"):
            read_source("-", False)


def test_endless_files_are_not_read() -> None:
    with pytest.raises(ImageError, match="/dev/zero has more than"):
        open_image("/dev/zero")


@pytest.mark.parametrize("background", [(1, 2), (0, 0, 256), (0.5, 0, 0), "red"])
def test_backgrounds_that_are_no_colour(background: Any) -> None:
    with pytest.raises(RequestError, match=r"background .*; give (a tuple of 3|a whole number|red, green and blue)"):
        PictureConfig(background=background)


def _open_in_child(data: bytes) -> tuple[int, int]:
    return open_image(data).size


def test_a_process_that_forked_has_decoders_of_its_own() -> None:
    data = encoded(noise(20, 10), "GIF")
    assert open_image(data).size == (20, 10)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_open_in_child, (data,)) == (20, 10)
    assert open_image(data).size == (20, 10)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, encoded(noise(40, 30), "PNG"))
    os.close(writing)
    assert open_image(f"/dev/fd/{reading}").size == (40, 30)
    os.close(reading)
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)


def test_a_pipe_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether somebody might write or not."""
    monkeypatch.setattr(sources, "PIPE_SECONDS", 0.05)
    os.mkfifo(tmp_path / "pipe")
    reading, writing = os.pipe()
    for path in (tmp_path / "pipe", Path(f"/dev/fd/{reading}")):
        with pytest.raises(ImageError, match=r"cannot be read \(nothing more came within 0.05 s\)"):
            open_image(path)
    os.close(reading)
    os.close(writing)
