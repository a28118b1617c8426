"""Clips as LLaVA-OneVision reads them: a stretched tile for each frame, of half as many tokens a side, and one end."""

import numpy as np

from engine.families.base import Frames, Packing, Pieces
from engine.families.llava_onevision.pictures import sample, scaled, tile_pixels
from engine.families.pixels import as_rgb, grid_boxes
from engine.model_config import ModelConfig, SiglipConfig


def clip_rows(config: ModelConfig, frames: int, width: int, height: int) -> list[int]:
    """Rows of a prompt that are of a clip's frames, and of its end."""
    assert isinstance(config.vision, SiglipConfig), config
    return [frames * pooled_side(config.vision) ** 2, 1]


def cut_clip(frames: Frames, config: ModelConfig) -> Pieces:
    """A tile for each frame, and what the language model reads of them. Raises ImageError."""
    vision = config.vision
    assert isinstance(vision, SiglipConfig), config
    size = vision.image_size, vision.image_size
    tiles = np.stack([scaled(as_rgb(picture), size) for picture in frames.pictures])
    side, pooled = vision.grid(), pooled_side(vision)
    line = sample(side, pooled, 0)
    taps = line.places[:, None, :, None] * side + line.places[None, :, None, :]
    weights = line.weights[:, None, :, None] * line.weights[None, :, None, :]
    taps, weights = taps.reshape(pooled**2, -1), weights.reshape(pooled**2, -1)
    starts = np.arange(len(tiles)) * vision.rows_per_tile()
    read = (starts[:, None, None] + taps).reshape(-1, taps.shape[1])
    end, alone = np.full((1, taps.shape[1]), vision.tokens_per_tile()), np.eye(1, taps.shape[1])
    packing = Packing(
        np.concatenate([read, end]),
        np.concatenate([*[weights] * len(tiles), alone]).astype(np.float32),
        np.arange(len(read)),
    )
    return Pieces(
        tile_pixels(tiles),
        np.tile(grid_boxes(pooled, pooled), (len(tiles), 1)),
        packing=packing,
        times=np.repeat(frames.spans(), pooled**2, axis=0),
    )


def pooled_side(vision: SiglipConfig) -> int:
    """Tokens along one side of a frame."""
    return -(-vision.grid() // 2)
