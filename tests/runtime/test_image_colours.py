"""From the numbers of a file to 8 bits of red, green and blue: white stays white, and options do what they say."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from engine.config import PictureConfig
from engine.runtime.images import open_image
from engine.runtime.images.colours import read_orientation
from tests.pictures import encoded, noise

SIXTEEN = [0, 1, 128, 129, 255, 256, 257, 32_767, 32_768, 40_000, 65_406, 65_407, 65_535]


def grey(picture: Any) -> list[int]:
    """The first row of a picture whose three colours are equal."""
    pixels = np.asarray(open_image(picture))
    assert (np.ptp(pixels, axis=-1) == 0).all()
    return pixels[0, :, 0].tolist()


def row(*numbers: float, kind: Any) -> Image.Image:
    return Image.fromarray(np.array([numbers], kind))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG2000", "PPM", None])
def test_sixteen_bits_are_scaled(format: str | None) -> None:
    picture = row(*SIXTEEN, kind=np.uint16)
    options = {"irreversible": False} if format == "JPEG2000" else {}
    source = picture if format is None else encoded(picture, format, **options)
    assert grey(source) == [round(number * 255 / 65_535) for number in SIXTEEN]


def test_a_dark_picture_of_sixteen_bits_stays_dark() -> None:
    assert grey(encoded(row(0, 100, 255, kind=np.uint16), "PNG")) == [0, 0, 1]
    assert grey(encoded(row(0, 100, 255, kind=np.uint16), "PPM")) == [0, 0, 1]


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes(order: str) -> None:
    picture = Image.frombytes("I;16B" if order == ">" else "I;16", (3, 1), np.array([0, 32_768, 65_535], f"{order}u2"))
    assert grey(picture) == [0, 128, 255]


def test_twelve_bits_of_a_tiff_are_scaled() -> None:
    file = io.BytesIO(encoded(row(*range(0, 4096, 273), kind=np.uint16), "TIFF"))
    data = bytearray(file.getvalue())
    numbers = Image.open(file)
    packed = b"".join(
        (first << 12 | second).to_bytes(3) for first, second in np.asarray(numbers).reshape(-1, 2).tolist()
    )
    tags = int.from_bytes(data[4:8], "little")
    for place in range(tags + 2, tags + 2 + 12 * int.from_bytes(data[tags : tags + 2], "little"), 12):
        match int.from_bytes(data[place : place + 2], "little"):
            case 258:
                data[place + 8 : place + 10] = (12).to_bytes(2, "little")
            case 273:
                start = int.from_bytes(data[place + 8 : place + 12], "little")
            case 279:
                data[place + 8 : place + 12] = len(packed).to_bytes(4, "little")
    data[start:] = packed
    assert grey(bytes(data)) == list(range(0, 256, 17))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        ([-3, 0.1, 0.2, 0.3], [0, 26, 51, 76]),
        ([0, 1, 2.4, 255], [0, 1, 2, 255]),
        ([0, 257, 32_768, 65_535], [0, 1, 128, 255]),
        ([0, 65_536, 2.0**31, 4_294_967_295], [0, 0, 128, 255]),
        ([np.nan, np.inf, -np.inf, 0.5], [0, 255, 0, 128]),
        ([1e30, 0, 0, 0], [255, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_floats_take_the_range_that_holds_them(numbers: list[float], expected: list[int]) -> None:
    picture = row(*numbers, kind=np.float32)
    assert grey(picture) == expected
    assert grey(encoded(picture, "TIFF")) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 1, 128, 255], [0, 1, 128, 255]),
        ([-9, 257, 32_768, 65_535], [0, 1, 128, 255]),
        ([0, 1 << 24, 1 << 30, (1 << 31) - 1], [0, 1, 64, 127]),
    ],
)
def test_integers_take_the_range_that_holds_them(numbers: list[int], expected: list[int]) -> None:
    picture = row(*numbers, kind=np.int32)
    assert grey(picture) == expected
    assert grey(encoded(picture, "TIFF")) == expected


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LAB", "HSV", "YCbCr", "RGBX", "CMYK", "I;16L", "I;16N", "F"])
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    for picture in (PictureConfig(), PictureConfig(background=(9, 9, 9))):
        opened = open_image(Image.new(mode, (3, 2)), picture)
        assert (opened.mode, opened.size) == ("RGB", (3, 2))


def test_premultiplied_colours_are_what_they_were() -> None:
    clear = Image.merge("LA", (Image.new("L", (2, 2), 200), Image.new("L", (2, 2), 255)))
    assert open_image(clear.convert("La")).getpixel((0, 0)) == (200, 200, 200)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF", None])
@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_a_background_shows_through(format: str | None, mode: str) -> None:
    alpha = Image.fromarray(np.array([[0, 255, 128, 255]], np.uint8))
    picture = Image.merge("RGBA", (*Image.new("RGB", (4, 1), (60, 60, 60)).split(), alpha))
    if format == "GIF" or mode == "P":
        alpha.putpixel((2, 0), 255)
        picture = Image.new("P", (4, 1), 1)
        picture.putpalette([200, 200, 200, 60, 60, 60])
        picture.putpixel((0, 0), 0)
        picture.info["transparency"] = 0
    elif mode == "LA":
        picture = picture.convert("LA")
    if format == "WEBP" and mode == "P":
        picture = picture.convert("RGBA")
    options = {"transparency": 0} if picture.mode == "P" and format in ("PNG", "GIF") else {}
    if picture.mode == "P" and format == "TIFF":
        pytest.skip("a TIFF's palette has no transparency")
    if format == "WEBP":
        options = {"lossless": True, "exact": True}
    source = picture if format is None else encoded(picture, format, **options)
    shown = np.asarray(open_image(source, PictureConfig(background=(250, 0, 10)))).tolist()[0]
    assert shown[0] == [250, 0, 10] and shown[1] == shown[3] == [60, 60, 60]
    if format != "GIF" and mode != "P":
        np.testing.assert_allclose(shown[2], [155, 30, 35], atol=1)
    hidden = np.asarray(open_image(source)).tolist()[0]
    assert hidden[1] == hidden[3] == [60, 60, 60] and hidden[0] != [250, 0, 10]


def test_a_transparent_colour_shows_the_background() -> None:
    over = PictureConfig(background=(1, 2, 3))
    colour = encoded(Image.new("RGB", (2, 1), (7, 8, 9)), "PNG", transparency=(7, 8, 9))
    assert open_image(colour, over).getpixel((0, 0)) == (1, 2, 3)
    deep = encoded(row(500, 65_535, kind=np.uint16), "PNG", transparency=500)
    shown = open_image(deep, over)
    assert [shown.getpixel((0, 0)), shown.getpixel((1, 0))] == [(1, 2, 3), (255, 255, 255)]


def test_an_opaque_picture_has_no_background() -> None:
    picture = noise(20, 10)
    np.testing.assert_array_equal(open_image(picture, PictureConfig(background=(1, 2, 3))), picture)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "MPO", "AVIF", None])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_undone_where_it_is_asked_for(format: str | None, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    data = encoded(noise(30, 20), format or "JPEG", exif=exif)
    source = Image.open(io.BytesIO(data)) if format is None else data
    plain, turned = open_image(source), open_image(source, PictureConfig(auto_orient=True))
    assert plain.size == (30, 20)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(turned, expected)
    if orientation not in range(2, 9):
        np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize("auto_orient", [False, True])
def test_a_tiff_is_turned_by_pillow(auto_orient: bool) -> None:
    data = encoded(noise(30, 20), "TIFF", tiffinfo={0x0112: 6})
    opened = open_image(data, PictureConfig(auto_orient=auto_orient))
    np.testing.assert_array_equal(opened, np.rot90(noise(30, 20), -1))


@pytest.mark.parametrize("exif", [b"", b"II", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"x" * 40])
def test_broken_exif_turns_nothing(exif: bytes) -> None:
    assert read_orientation(exif) == 1
    assert read_orientation(b"Exif\0\0" + exif) == 1
