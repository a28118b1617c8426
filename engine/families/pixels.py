"""What preprocessing of more than one family does with a picture's pixels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from engine.errors import ImageError


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture; EXIF rotation is not applied. Raises ImageError."""
    if not all(image.size):
        raise ImageError(f"the picture has no pixels ({image.width} x {image.height}); give another one")
    try:
        return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise ImageError(
            f"the picture of mode {image.mode} cannot be read as RGB ({error}); convert it first"
        ) from None


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [...,3] -> float32 [...,3], in the steps and types of the published processors, to the last bit."""
    values = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (values - np.array(mean, np.float32)) / np.array(std, np.float32)


def grid_boxes(rows: int, columns: int) -> np.ndarray:
    """-> float32 [rows*columns,4]: x0 y0 x1 y1 of each cell of a picture whose sides are 1, row by row."""
    row, column = np.indices((rows, columns))
    corners = np.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], axis=-1)
    return corners.reshape(-1, 4).astype(np.float32)
