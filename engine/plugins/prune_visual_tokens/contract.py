"""Contract of `sgl::prune_visual_tokens` and its reference in NumPy (paper, section 3.2)."""

import numpy as np

INPUTS = ("hidden", "rope_cos", "rope_sin", "keep_index")
OUTPUTS = ("kept_hidden", "kept_cos", "kept_sin")


def reference(
    hidden: np.ndarray, rope_cos: np.ndarray, rope_sin: np.ndarray, keep_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[B,S,C], [B,S,D/2] x2, [B,S'] -> [B,S',C], [B,S',D/2] x2: the rows named by keep_index, in its order."""
    index = keep_index[:, :, None]
    return (
        np.take_along_axis(hidden, index, axis=1),
        np.take_along_axis(rope_cos, index, axis=1),
        np.take_along_axis(rope_sin, index, axis=1),
    )
