"""Qwen2-VL's ViT, and Qwen2.5-VL's: whole pictures of any size, whose patches turn with their row and column.

Pixels: float32 [N,rows,columns,M*M,K], of a still picture one piece, of a clip one for each pair of frames: for each
visual token the values of its patches, row by row; a patch's by colour, frame, row and column. Shapes: P patches of a
piece, in the order of the tokens; W windows of E places.
"""

import numpy as np

from engine.bindings import PATCH_COS, PATCH_SIN, PATCHES, WINDOW_MASK, WINDOW_PATCH, WINDOW_PLACE
from engine.model_config import QwenVitConfig

EMPTY = -1e4
"""Added to a logit, of which no trace is left in any precision."""
THETA = 10000.0
"""Base of the rotary embedding, which checkpoints do not name."""


def cut_patches(config: QwenVitConfig, frames: np.ndarray) -> np.ndarray:
    """float32 [T,3,H,W], sides of whole tokens -> pixels of one piece, its frames these or one that stands still."""
    size, merged = config.patch_size, config.merged
    rows, columns = (side // config.token_side() for side in frames.shape[2:])
    squares = frames.reshape(-1, 3, rows, merged, size, columns, merged, size)
    patches = squares.transpose(2, 5, 3, 6, 1, 0, 4, 7)
    shape = (*patches.shape[:5], config.frames, size, size)
    return np.broadcast_to(patches, shape).reshape(1, rows, columns, merged**2, config.patch_values())


def host_inputs(config: QwenVitConfig, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """By the name of the binding."""
    place = patch_places(config, *pixels.shape[1:3])
    half = config.hidden_size // config.num_heads // 2
    # float32 as published: a frequency's last bit grows with the row.
    frequencies = np.float32(1) / np.float32(THETA) ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    angles = (place[:, :, None].astype(np.float32) * frequencies).reshape(1, len(place), half)
    inputs = {
        PATCHES: pixels.reshape(1, len(place), config.patch_values()),
        PATCH_COS: np.cos(angles),
        PATCH_SIN: np.sin(angles),
    }
    return inputs if config.window is None else inputs | window_inputs(config, place)


def window_inputs(config: QwenVitConfig, place: np.ndarray) -> dict[str, np.ndarray]:
    """[P,2] -> which patch is where in a window [W,E], what is added to attention to these places [W,1,1,E], and where
    each patch went [P]; a window at the edge of a picture has empty places.
    """
    assert config.window is not None, "it has windows"
    row, column = (place // (config.window * config.merged)).T
    _, window = np.unique(np.stack([row, column]), axis=1, return_inverse=True)
    window = window.reshape(-1)
    order = np.argsort(window, kind="stable")
    count = np.bincount(window)
    start = np.cumsum(count) - count
    room = config.window_patches()
    went = np.empty(len(place), np.int64)
    went[order] = window[order] * room + np.arange(len(place)) - start[window[order]]
    patch, mask = np.zeros(len(count) * room, np.int64), np.full(len(count) * room, EMPTY, np.float32)
    patch[went], mask[went] = np.arange(len(place)), 0
    return {
        WINDOW_PATCH: patch.reshape(-1, room),
        WINDOW_MASK: mask.reshape(-1, 1, 1, room),
        WINDOW_PLACE: went,
    }


def rows_per_piece(config: QwenVitConfig, pixels: np.ndarray) -> int:
    """Of a picture."""
    rows, columns = pixels.shape[1:3]
    return rows * columns


def patch_places(config: QwenVitConfig, rows: int, columns: int) -> np.ndarray:
    """-> int [P,2], row and column of each patch in a picture of so many rows and columns of tokens."""
    merged = config.merged
    grid = np.moveaxis(np.indices((rows * merged, columns * merged)), 0, -1)
    return grid.reshape(rows, merged, columns, merged, 2).swapaxes(1, 2).reshape(-1, 2)
