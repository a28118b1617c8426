"""Pictures as LLaVA-OneVision cuts them up, and how the rows that its language model reads come of the tiles' tokens.

One picture alone is a stretched tile, and a canvas of tiles that keeps its shape: the tokens of the canvas that show
the picture, fewer where they were too many, and behind each line of them the row that ends it. One of several is one
tile, on a square of the mean colour.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.errors import ImageError
from engine.families.base import Packing, Pieces
from engine.families.pixels import as_rgb, grid_boxes, normalise
from engine.model_config import SCALED_DOWN, AnyResolutionConfig, ModelConfig, SiglipConfig

MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
LONGEST_SIDE = 1 << 14
"""Of a picture that is put on a square of as many pixels a side, all of which are in memory."""


@dataclass(frozen=True)
class Sampled:
    """Along one side of a canvas: int64 [n,K], the tokens that each of n is a mean of; float64 [n,K], their parts."""

    places: np.ndarray
    weights: np.ndarray


def cut(image: Image.Image, config: ModelConfig, is_alone: bool = True) -> Pieces:
    """A decoded picture's tiles, and what the language model reads of them. Raises ImageError."""
    vision, canvas = config.vision, config.tiling
    assert isinstance(vision, SiglipConfig) and isinstance(canvas, AnyResolutionConfig), config
    picture = as_rgb(image)
    if not is_alone:
        return _one_of_several(picture, vision)
    side = vision.image_size
    rows, columns = closest_grid(picture.height, picture.width, canvas, side)
    tiles = np.concatenate([scaled(picture, (side, side))[None], _canvas(picture, rows, columns, side)])
    down, across = sampled_lines(picture.height, picture.width, (rows, columns), vision.grid(), canvas.max_tiles)
    boxes = [grid_boxes(vision.grid(), vision.grid()), grid_boxes(len(down.places), len(across.places))]
    return Pieces(tile_pixels(tiles), np.concatenate(boxes), packing=_pack(vision, columns, down, across))


def closest_grid(height: int, width: int, canvas: AnyResolutionConfig, side: int) -> tuple[int, int]:
    """Rows and columns of the canvas that shows most of a picture's pixels, and wastes least of its own."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = grid[0] * side, grid[1] * side
        scale = min(columns / width, rows / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - rows * columns

    return max(canvas.grids, key=worth)


def sampled_lines(height: int, width: int, grid: tuple[int, int], side: int, max_tiles: int) -> tuple[Sampled, Sampled]:
    """Which tokens of a canvas are read, by row and by column: those that show a picture of `height` and `width`.

    grid: tiles of the canvas; side: tokens along one side of a tile.
    """
    rows, columns = grid[0] * side, grid[1] * side
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    shown = rows - 2 * top, columns - 2 * left
    shrink = math.sqrt(shown[0] * shown[1] / (max_tiles * side**2))
    read = tuple(int(length // shrink) for length in shown) if shrink > SCALED_DOWN else shown
    if all(shown) and not all(read):
        raise ImageError(
            f"the picture of {width} x {height} pixels is so thin that no token of its canvas is left; cut it up"
        )
    return sample(shown[0], read[0], top), sample(shown[1], read[1], left)


def sample(length: int, wanted: int, start: int) -> Sampled:
    """`wanted` of so many tokens from `start` on, each between the two that are next to it."""
    if wanted == length:
        return Sampled(start + np.arange(length)[:, None], np.ones((length, 1)))
    place = np.maximum(0, (np.arange(wanted) + 0.5) * (length / wanted) - 0.5)
    before = place.astype(np.int64)
    behind = np.minimum(before + 1, length - 1)
    part = place - before
    return Sampled(start + np.stack([before, behind], axis=1), np.stack([1 - part, part], axis=1))


def _pack(vision: SiglipConfig, columns: int, down: Sampled, across: Sampled) -> Packing:
    """The stretched tile, then line by line what is read of a canvas of so many columns of tiles."""
    tile, side, stride = vision.tokens_per_tile(), vision.grid(), vision.rows_per_tile()
    row, column = down.places[:, None, :, None], across.places[None, :, None, :]
    number = 1 + row // side * columns + column // side
    taps = number * stride + row % side * side + column % side
    # A very thin picture has no whole line of its own: only the stretched tile is left.
    height, width, *means = taps.shape
    taps = taps.reshape(height, width, math.prod(means))
    weights = (down.weights[:, None, :, None] * across.weights[None, :, None, :]).reshape(taps.shape)
    end = np.full((height, 1, taps.shape[2]), tile)
    lines = np.concatenate([taps, end], axis=1).reshape(-1, taps.shape[2])
    alone = np.eye(1, taps.shape[2])
    ends = np.broadcast_to(alone, (height, 1, taps.shape[2]))
    shares = np.concatenate([weights, ends], axis=1).reshape(lines.shape)
    first = np.repeat(np.arange(tile)[:, None], taps.shape[2], axis=1)
    placed = tile + np.arange(height * (width + 1)).reshape(height, width + 1)[:, :width]
    return Packing(
        np.concatenate([first, lines]),
        np.concatenate([np.repeat(alone, tile, axis=0), shares]).astype(np.float32),
        np.concatenate([np.arange(tile), placed.reshape(-1)]),
    )


def _one_of_several(picture: Image.Image, vision: SiglipConfig) -> Pieces:
    """A tile with the whole picture, and one end of a line."""
    longer, tokens = max(picture.size), vision.tokens_per_tile()
    if longer > LONGEST_SIDE:
        raise ImageError(
            f"the picture of {picture.width} x {picture.height} pixels is one of several, each put on a square, and a "
            f"square of {longer} pixels is too large; scale it down to {LONGEST_SIDE} or cut it up"
        )
    left, top = (longer - picture.width) // 2, (longer - picture.height) // 2
    square = Image.new("RGB", (longer, longer), tuple(int(part * 255) for part in MEAN))
    square.paste(picture, (left, top))
    # Tokens beside the picture lie outside of it, and no other model's token shares their place.
    origin, extent = np.array([left, top] * 2), np.array([picture.width, picture.height] * 2)
    boxes = (grid_boxes(vision.grid(), vision.grid()).astype(np.float64) * longer - origin) / extent
    packing = Packing(np.arange(tokens + 1)[:, None], np.ones((tokens + 1, 1), np.float32), np.arange(tokens))
    tile = scaled(square, (vision.image_size, vision.image_size))
    return Pieces(tile_pixels(tile[None]), boxes.astype(np.float32), packing=packing)


def _canvas(picture: Image.Image, rows: int, columns: int, side: int) -> np.ndarray:
    """uint8 [rows*columns,side,side,3]: the picture as large as fits, in the middle of black."""
    width, height = columns * side, rows * side
    across, down = width / picture.width, height / picture.height
    if across < down:
        size = width, min(math.ceil(picture.height * across), height)
    else:
        size = min(math.ceil(picture.width * down), width), height
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = scaled(picture, size)
    return canvas.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def tile_pixels(tiles: np.ndarray) -> np.ndarray:
    """uint8 [N,S,S,3] -> float32 [N,3,S,S], normalised."""
    return np.ascontiguousarray(normalise(tiles, MEAN, STD).transpose(0, 3, 1, 2))


def scaled(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Width and height -> uint8 [H,W,3]"""
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
