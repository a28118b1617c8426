"""Pictures that a question holds in memory until it has ended: those of its own, which nobody else changes."""

import numpy as np
from PIL import Image

from engine.config import PictureConfig
from engine.runtime.images.limits import MAX_PIXELS
from engine.runtime.images.opening import open_image
from engine.runtime.images.source import ImageSource

PIXEL_BYTES = 4
"""Of an RGB picture of Pillow."""


def held_bytes(image: ImageSource) -> int:
    """Memory that `hold` takes or keeps; none of what it refuses, and a file is read when its turn comes."""
    if isinstance(image, bytes | bytearray | memoryview):
        return memoryview(image).nbytes
    if isinstance(image, Image.Image):
        pixels = image.width * image.height
    elif isinstance(image, np.ndarray):
        pixels = int(np.prod(image.shape[:2], dtype=object)) if image.ndim in (2, 3) else 0
    else:
        return 0
    return PIXEL_BYTES * pixels if pixels <= MAX_PIXELS else 0


def hold(image: ImageSource, picture: PictureConfig) -> ImageSource:
    """A picture that whoever handed it over may go on with. Raises ImageError."""
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, Image.Image | np.ndarray):
        return image
    copied = open_image(image, picture)
    copied.info.clear()  # it is turned as it says already
    return copied
