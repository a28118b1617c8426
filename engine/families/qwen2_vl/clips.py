"""Clips as the published preprocessing scales their frames and cuts them into patches, a pair of frames deep."""

import numpy as np
from PIL import Image

from engine.errors import ImageError
from engine.families.base import Frames, Pieces
from engine.families.pixels import as_rgb, grid_boxes, normalise
from engine.families.qwen2_vl.pictures import MEAN, STD, fitted, scaled
from engine.model_config import ModelConfig, NativeSizeConfig, QwenVitConfig
from engine.towers.qwen2_vit import cut_patches

LEAST_TOKENS, MOST_TOKENS = 128, 768
"""Of a frame."""
ALL_TOKENS = 0.9 * 128_000
"""Of all pairs of a clip; frames become smaller where they are many, down to a little more than the least."""
LEAST_STRETCH = 1.05


def frame_size(config: ModelConfig, frames: int, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of each of so many frames of that size. Raises ImageError.

    In a build that scales pictures down below what a frame may have, a frame is scaled like a picture.
    """
    vision, limits = config.vision, config.tiling
    assert isinstance(vision, QwenVitConfig) and isinstance(limits, NativeSizeConfig), config
    side, pairs = vision.token_side(), -(-frames // vision.frames)
    least, largest = LEAST_TOKENS * side**2, MOST_TOKENS * side**2
    most = max(min(largest, ALL_TOKENS * side**2 / pairs), int(least * LEAST_STRETCH))
    if NativeSizeConfig(least, largest).most_tokens(side) > limits.most_tokens(side):
        return scaled(height, width, side, limits)
    return fitted(height, width, side, least, most)


def clip_rows(config: ModelConfig, frames: int, width: int, height: int) -> list[int]:
    """Rows of a prompt that are of each pair of frames. Raises ImageError."""
    vision = config.vision
    assert isinstance(vision, QwenVitConfig), config
    tall, wide = frame_size(config, frames, height, width)
    return [tall * wide // vision.token_side() ** 2] * -(-frames // vision.frames)


def cut_clip(frames: Frames, config: ModelConfig) -> Pieces:
    """A piece for each pair of frames; the last frame is its own partner where they are odd. Raises ImageError."""
    vision = config.vision
    assert isinstance(vision, QwenVitConfig), config
    pictures = [as_rgb(picture) for picture in frames.pictures]
    height, width = frame_size(config, len(pictures), pictures[0].height, pictures[0].width)
    pairs = []
    for start in range(0, len(pictures), vision.frames):
        pair = [normalise(_resized(picture, width, height), MEAN, STD) for picture in pictures[start:][: vision.frames]]
        pair += pair[-1:] * (vision.frames - len(pair))
        pairs.append(cut_patches(vision, np.stack(pair).transpose(0, 3, 1, 2)))
    pixels = np.concatenate(pairs)
    _, rows, columns = pixels.shape[:3]
    spans = frames.spans()
    first = np.arange(0, len(spans), vision.frames)
    last = np.minimum(first + vision.frames, len(spans)) - 1
    spans = np.stack([spans[first, 0], spans[last, 1]], axis=1)
    return Pieces(
        pixels,
        np.tile(grid_boxes(rows, columns), (len(pixels), 1)),
        _places(vision, len(pixels), rows, columns, frames.rate),
        times=np.repeat(spans, rows * columns, axis=0),
    )


def _places(vision: QwenVitConfig, pairs: int, rows: int, columns: int, rate: float) -> np.ndarray:
    """int64 [V,3]: in time from pair to pair a step, or by the seconds between them."""
    time = np.arange(pairs)
    if vision.steps_per_second is not None:
        # float32 and in this order as published, whose steps are whole by its rounding.
        seconds = time.astype(np.float32) * np.float32(vision.frames / rate)
        time = (seconds * np.float32(vision.steps_per_second)).astype(np.int64)
    grid = np.indices((pairs, rows, columns))
    return np.stack([time[grid[0]], grid[1], grid[2]], axis=-1).reshape(-1, 3)


def _resized(picture: Image.Image, width: int, height: int) -> np.ndarray:
    """uint8 [H,W,3]"""
    if not all(picture.size):
        raise ImageError(f"a frame has no pixels ({picture.width} x {picture.height}); give another one")
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
