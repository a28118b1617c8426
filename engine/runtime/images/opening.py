"""Opening one picture: whatever it is, an RGB picture of one's own or one sentence."""

import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from engine.config import PictureConfig
from engine.errors import EngineError, ImageError
from engine.runtime.images.colours import ORIENTATION, to_rgb
from engine.runtime.images.decode import BOUNDED, damage, decode
from engine.runtime.images.decoder import decode_apart
from engine.runtime.images.formats import READ, Format, detect
from engine.runtime.images.limits import MAX_BYTES, Unfit, check_size
from engine.runtime.images.source import ImageSource, stored_file
from engine.runtime.images.stored import BLOCK, Stored
from engine.runtime.words import short

PUBLISHED = PictureConfig()
UNNAMED = "the picture"
RUN_PROGRAMS = {"EPS", "WMF"}
"""Formats for which Pillow starts a program when an open picture is first looked at."""

_foreign = threading.Lock()
"""Pillow reads an open picture when it is first looked at, and two threads that do so at once get wrong pixels."""


def open_image(source: ImageSource, picture: PictureConfig = PUBLISHED) -> Image.Image:
    """A decoded RGB picture that nobody else holds; may be called from many threads. Raises ImageError.

    What is missing, broken, no picture, or too large to decode safely, ends in one sentence that names it.
    """
    name = UNNAMED
    try:
        if isinstance(source, Image.Image):
            return _copy(source, picture)
        if isinstance(source, np.ndarray):
            return to_rgb(_from_numbers(source), picture)
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            name = short(str(path))
            with stored_file(path, name) as stored:
                return _decode(stored, picture)
        if isinstance(source, bytes | bytearray | memoryview):
            return _decode(Stored.of(bytes(source)), picture)
        kind = type(source).__name__
        raise ImageError(
            f"a picture cannot be a {kind}; give a path, the bytes of a file, a picture of Pillow or a NumPy array"
        )
    except Unfit as reason:
        raise ImageError(f"{name} {reason}") from None
    except MemoryError:
        raise ImageError(f"{name} needs more memory than there is; scale it down") from None
    except EngineError:
        raise
    except Exception as error:  # a decoder may raise anything for what is damaged
        raise ImageError(f"{name} {damage(error)}") from None


def _decode(stored: Stored, picture: PictureConfig) -> Image.Image:
    """Raises Unfit, or whatever Pillow may raise."""
    if stored.size > MAX_BYTES:
        raise Unfit(f"has more than {MAX_BYTES:,} bytes; scale it down or save it compressed")
    if not stored.size:
        raise Unfit("is empty; give another one")
    format = detect(stored.at(0, BLOCK))
    if not isinstance(format, Format):
        raise Unfit(f"is {format}; {READ} are read, so convert it to PNG or JPEG")
    return decode(stored, format, picture) if format in BOUNDED else decode_apart(stored, format, picture)


def _copy(image: Image.Image, picture: PictureConfig) -> Image.Image:
    if image.format in RUN_PROGRAMS:
        raise Unfit(f"is {image.format}, which another program would draw; convert it to PNG or JPEG")
    check_size(*image.size)
    with _foreign:
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1) if picture.auto_orient else 1
        copied = to_rgb(image, picture, orientation)
        return copied.copy() if copied is image else copied


def _from_numbers(numbers: np.ndarray) -> Image.Image:
    """uint8 [H,W] or [H,W,C] -> a picture of its own. Raises Unfit."""
    shape = list(numbers.shape)
    if numbers.dtype != np.uint8:
        raise Unfit(f"is an array of {numbers.dtype}; give uint8, 0 to 255")
    if numbers.ndim not in (2, 3) or (numbers.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise Unfit(f"is an array of shape {shape}; give [H,W], or [H,W,C] with 1, 3 or 4 channels")
    check_size(shape[1], shape[0])
    plane = numbers[..., 0] if numbers.ndim == 3 and shape[2] == 1 else numbers
    return Image.fromarray(np.ascontiguousarray(plane))
