"""Opening pictures that strangers send."""

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from engine.errors import ImageError

ImageSource = Path | str | bytes | Image.Image
"""A file, the bytes of one, or a picture that is open already."""

MAX_PIXELS = 64_000_000
"""More than any camera's picture; decoding it takes 256 MB."""


def open_image(source: ImageSource) -> Image.Image:
    """A decoded picture. Raises ImageError for what is missing, broken, no picture, or too large to decode safely."""
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    if not isinstance(source, Path | str | bytes):
        kind = type(source).__name__
        raise ImageError(f"a picture cannot be a {kind}; give a path, the bytes of a file, or a picture of Pillow")
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns of a bomb before it refuses one; the limit here is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _decode(Image.open(io.BytesIO(source) if isinstance(source, bytes) else source), name)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist; give the path of a picture") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture that Pillow can read; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} is too large to decode safely; scale it below {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name} cannot be read ({error.strerror}); give the path of a picture") from None
        raise ImageError(f"{name} cannot be decoded ({error}); it is damaged or cut off") from None


def _decode(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than can be decoded safely; "
            f"scale it below {MAX_PIXELS:,} pixels"
        )
    image.load()
    return image
