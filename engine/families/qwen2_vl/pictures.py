"""Pictures of native size, as the published preprocessing scales them and cuts them into patches."""

import math

import numpy as np
from PIL import Image

from engine.errors import ImageError
from engine.families.base import Pieces
from engine.families.pixels import as_rgb, grid_boxes, normalise
from engine.model_config import LONGEST_ASPECT, ModelConfig, NativeSizeConfig, QwenVitConfig
from engine.towers.qwen2_vit import cut_patches

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""Of CLIP, for each colour."""


def cut(image: Image.Image, config: ModelConfig, is_alone: bool = True) -> Pieces:
    """A decoded picture as one piece: its patches, in the order of the visual tokens. Raises ImageError."""
    vision, limits = config.vision, config.tiling
    assert isinstance(vision, QwenVitConfig) and isinstance(limits, NativeSizeConfig), config
    picture = as_rgb(image)
    height, width = scaled(picture.height, picture.width, vision.token_side(), limits)
    canvas = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = cut_patches(vision, normalise(np.asarray(canvas), MEAN, STD).transpose(2, 0, 1)[None])
    _, rows, columns = pixels.shape[:3]
    places = np.stack([np.zeros((rows, columns), np.int64), *np.indices((rows, columns))], axis=-1)
    return Pieces(pixels, grid_boxes(rows, columns), places.reshape(-1, 3))


def scaled(height: int, width: int, side: int, limits: NativeSizeConfig) -> tuple[int, int]:
    """`fitted` within the limits of a picture. Raises ImageError."""
    return fitted(height, width, side, limits.min_pixels, limits.max_pixels)


def fitted(height: int, width: int, side: int, least: float, most: float) -> tuple[int, int]:
    """Height and width in whole tokens of `side` pixels: the nearest of so many pixels that hardly bends the picture.

    Raises ImageError for a picture that is too thin.
    """
    if max(height, width) > LONGEST_ASPECT * min(height, width):
        raise ImageError(
            f"the picture of {width} x {height} pixels is more than {LONGEST_ASPECT} times as long as it is wide; "
            "cut it up"
        )
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side**2 > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(length / shrink / side)) for length in (height, width))
    elif rows * columns * side**2 < least:
        stretch = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(length * stretch / side) for length in (height, width))
    return rows * side, columns * side
