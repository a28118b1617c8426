"""From the numbers of a picture to 8 bits of red, green and blue, and which way is up.

Numbers of more than 8 bits are scaled, white to white: 16 bits from 0..65535, those of a TIFF from the bits that it
names. Integers of 32 bits and floats have no range of their own: theirs is the first of 0..1 (floats only), 0..255,
0..65535 and 0..4294967295 that holds the largest of them. What is below 0, or no number, is black.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from engine.config import PictureConfig

ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258
"""Tags of EXIF and TIFF."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation; 1 is upright."""

RANGES = (1, 255, 65_535, 4_294_967_295)
MAX_TAGS = 1000
STRIP = 1_000_000
"""Pixels."""


def to_rgb(image: Image.Image, picture: PictureConfig, orientation: int = 1) -> Image.Image:
    """A decoded picture in mode RGB; the same object where it was in that mode and nothing was asked for."""
    if picture.background is not None and image.has_transparency_data:
        image = _over(image, picture.background)
    elif _is_deep(image):
        image = _scaled(image)
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns of transparency that is dropped on the straight way
    if image.mode != "RGB":
        image = image.convert("RGB")
    if picture.auto_orient and orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    return image


def read_orientation(exif: bytes) -> int:
    """1 to 8, of a block of EXIF; 1 where it does not say."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1

    def number(place: int, size: int) -> int:
        return int.from_bytes(exif[place : place + size], "little" if order == "little" else "big")

    tags = number(4, 4)
    for place in range(tags + 2, tags + 2 + 12 * min(number(tags, 2), MAX_TAGS), 12):
        if number(place, 2) == ORIENTATION:
            return number(place + 8, 2)
    return 1


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Top and bottom of the parts in which a picture is handled, so that it is not held twice."""
    rows = max(1, STRIP // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _scaled(image: Image.Image) -> Image.Image:
    """More than 8 bits of grey -> 8 bits."""
    white = _white(image)
    grey = Image.new("L", image.size)
    for top, numbers in _numbers(image):
        scaled = np.rint(np.clip(numbers, 0, white) * (255 / white)).astype(np.uint8)
        grey.paste(Image.fromarray(scaled), (0, top))
    return grey


def _white(image: Image.Image) -> int:
    """The number that is white."""
    bits = _bits(image)
    if bits is not None:
        return (1 << bits) - 1
    ranges = RANGES if image.mode == "F" else RANGES[1:]
    largest = max(numbers.max(initial=0, where=np.isfinite(numbers)) for _, numbers in _numbers(image))
    return next((white for white in ranges if largest <= white), ranges[-1])


def _numbers(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a picture in parts [H,W], each with where it begins; what is no number is 0."""
    for top, bottom in strips(*image.size):
        numbers = np.asarray(image.crop((0, top, image.width, bottom)))
        yield top, np.nan_to_num(numbers, nan=0, posinf=np.inf) if image.mode == "F" else numbers


def _bits(image: Image.Image) -> int | None:
    """Bits of each number, where the mode or the file says so."""
    named = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)
    if image.mode.startswith("I;16"):
        return named[0] if isinstance(named, Sequence) and len(named) and 8 < named[0] <= 16 else 16
    if image.mode == "I" and image.format == "PPM":
        return 16
    return None


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """What is seen when a picture lies on a coloured ground."""
    if _is_deep(image):
        clear = image.info["transparency"]
        shown = Image.fromarray(np.asarray(image) != clear)
        image = Image.merge("LA", (_scaled(image), shown.convert("L")))
    elif image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, (*background, 255))
    ground.alpha_composite(image)
    return ground
