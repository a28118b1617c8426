"""The bytes of a file to a picture, in the process that calls."""

from importlib import import_module
from typing import BinaryIO, cast

from PIL import Image, ImageFile, UnidentifiedImageError

from engine.config import PictureConfig
from engine.runtime.images.colours import read_orientation, to_rgb
from engine.runtime.images.formats import Format
from engine.runtime.images.jpeg import read_jpeg
from engine.runtime.images.limits import MAX_PYTHON_BYTES, Unfit, check_size
from engine.runtime.images.png import read_png
from engine.runtime.images.stored import Joined, Stored
from engine.runtime.words import short

BOUNDED = {Format.JPEG: "Jpeg", Format.PNG: "Png", Format.WEBP: "WebP"}
"""Formats whose headers tell what decoding can cost, with what Pillow calls their plugins."""


def decode(stored: Stored, format: Format, picture: PictureConfig) -> Image.Image:
    """A decoded picture in mode RGB. Raises Unfit, or whatever Pillow may raise for what is damaged."""
    file, exif = Joined(b"", stored, 0, stored.size), b""
    if format is Format.JPEG:
        file, exif = read_jpeg(stored)
    elif format is Format.PNG:
        file, exif = read_png(stored)
    elif format is Format.WEBP:
        check_size(*_webp_size(stored.at(0, 30)))
    image = _open(cast(BinaryIO, file), format)
    check_size(*image.size, format.max_pixels())
    if stored.size > MAX_PYTHON_BYTES and any(tile[0] in Image.DECODERS for tile in image.tile):
        raise Unfit(
            f"is a {format} of a rare kind, of which more than {MAX_PYTHON_BYTES:,} bytes take too long to decode; "
            "convert it to PNG or JPEG"
        )
    image.load()
    # It would keep its canvases as long as the picture lives.
    vars(image).pop("_decoder", None)
    return to_rgb(image, picture, _orientation(image, exif) if picture.auto_orient else 1)


def damage(error: Exception) -> str:
    """What a decoder raised, as the sentence that the picture's name begins."""
    reason = "its header is broken" if isinstance(error, UnidentifiedImageError) else short(str(error))
    return f"cannot be decoded ({reason or type(error).__name__}); it is damaged or cut off"


def _open(file: BinaryIO, format: Format) -> ImageFile.ImageFile:
    name = BOUNDED.get(format)
    if name is None:
        return Image.open(file, formats=[format])
    # `Image.open` imports the plugins of other formats, too, and a command starts sooner without them.
    plugin: type[ImageFile.ImageFile] = getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")
    return plugin(file)


def _orientation(image: Image.Image, exif: bytes) -> int:
    """Of a TIFF always 1: Pillow turns it while it decodes."""
    return read_orientation(exif or image.info.get("exif", b"")) if image.format != Format.TIFF else 1


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise Unfit("is a WebP without a picture; it is damaged or cut off")
