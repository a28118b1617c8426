"""Pictures -> tiles as the published preprocessing cuts them, and where each visual token lies in its picture."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from engine.families.base import Frames, Pieces
from engine.families.pixels import as_rgb
from engine.model_config import InternVitConfig, ModelConfig, TilingConfig

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of ImageNet, for each colour."""


@dataclass(frozen=True)
class Tiles:
    """One picture, cut up.

    pixel_values: float32 [N,3,S,S], normalised.
    boxes: float32 [N,4], x0 y0 x1 y1 of each tile in the picture, whose sides are 1; a thumbnail is (0,0,1,1).
    """

    pixel_values: np.ndarray
    boxes: np.ndarray


def cut(image: Image.Image, config: ModelConfig, is_alone: bool = True) -> Pieces:
    """A decoded picture's tiles, and where each visual token lies. Raises ImageError."""
    tiles = split_tiles(image, config)
    return Pieces(tiles.pixel_values, token_boxes(config, tiles.boxes))


def clip_rows(config: ModelConfig, frames: int, width: int, height: int) -> list[int]:
    """Rows of a prompt that are of each frame of a clip."""
    assert isinstance(config.vision, InternVitConfig), config
    return [config.vision.tokens_per_tile()] * frames


def cut_clip(frames: Frames, config: ModelConfig) -> Pieces:
    """A tile for each frame of a clip, as the published evaluation on clips has it. Raises ImageError."""
    assert isinstance(config.vision, InternVitConfig), config
    alone = replace(config, tiling=TilingConfig(max_tiles=1))
    tiles = [split_tiles(picture, alone) for picture in frames.pictures]
    boxes = [token_boxes(config, part.boxes) for part in tiles]
    times = np.repeat(frames.spans(), config.vision.tokens_per_tile(), axis=0)
    return Pieces(np.concatenate([part.pixel_values for part in tiles]), np.concatenate(boxes), times=times)


def split_tiles(image: Image.Image, config: ModelConfig) -> Tiles:
    """A decoded picture -> tiles, as the published preprocessing does; EXIF rotation is not applied there."""
    picture = as_rgb(image)
    assert isinstance(config.vision, InternVitConfig) and isinstance(config.tiling, TilingConfig), config
    size = config.vision.image_size
    columns, rows = _closest_grid(picture, config.tiling, size)
    canvas = picture.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    pixels = np.asarray(canvas).reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    boxes = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    if config.tiling.thumbnail and len(boxes) > 1:
        thumbnail = picture.resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.concatenate([pixels, np.asarray(thumbnail)[None]])
        boxes.append((0.0, 0.0, 1.0, 1.0))
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return Tiles(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), np.array(boxes, np.float32))


def token_boxes(config: ModelConfig, boxes: np.ndarray) -> np.ndarray:
    """[N,4] tile boxes -> [V,4]: the box of every visual token in its picture, in prompt order."""
    assert isinstance(config.vision, InternVitConfig), config
    grid = config.vision.grid()
    cells = np.arange(grid, dtype=np.float32)
    row, column = np.meshgrid(cells, cells, indexing="ij")
    corners = np.stack([column, row, column + 1, row + 1], axis=-1).reshape(1, -1, 4) / np.float32(grid)
    origin = np.tile(boxes[:, None, :2], 2)
    extent = np.tile(boxes[:, None, 2:] - boxes[:, None, :2], 2)
    return (origin + extent * corners).reshape(-1, 4).astype(np.float32)


def _closest_grid(picture: Image.Image, tiling: TilingConfig, size: int) -> tuple[int, int]:
    """Columns and rows of the allowed grid whose aspect ratio is closest to the picture's.

    Among equally close grids a larger one wins while the picture has more than half of its pixels.
    """
    sides = range(1, tiling.max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides]
    grids = [grid for grid in grids if tiling.min_tiles <= grid[0] * grid[1] <= tiling.max_tiles]
    aspect_ratio = picture.width / picture.height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(aspect_ratio - columns / rows)
        large_enough = picture.width * picture.height > 0.5 * size * size * columns * rows
        if distance < best_distance or (distance == best_distance and large_enough):
            best, best_distance = (columns, rows), distance
    return best
