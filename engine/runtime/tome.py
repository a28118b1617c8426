"""ToMe: similar visual tokens merged before the language model, by bipartite soft matching (Bolya et al., 2023).

Our reading for a language model: tokens are compared by the cosine of their projected features, all pictures of a
question together. A merged token takes the place of the one that it was merged into, so what remains stays in order and
has a position of its own in the prompt.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Merged:
    """What remains of V visual tokens.

    kept: int64 [N], the tokens that others were merged into or that stayed alone, sorted. features: float32 [N,C], the
    mean of what each stands for. sizes: int64 [N], how many tokens that is; they add up to V.
    """

    kept: np.ndarray
    features: np.ndarray
    sizes: np.ndarray


def merge(features: np.ndarray, num_kept: int) -> Merged:
    """[V,C] -> `num_kept` tokens, in rounds that merge at most half of what is left."""
    assert 0 < num_kept <= len(features) or num_kept == len(features) == 0, (num_kept, len(features))
    merged = Merged(np.arange(len(features)), features.astype(np.float32), np.ones(len(features), np.int64))
    while (left := len(merged.kept)) > num_kept:
        merged = merge_round(merged, min(left // 2, left - num_kept))
    return merged


def merge_round(tokens: Merged, count: int) -> Merged:
    """The `count` tokens at even places that are most similar to one at an odd place, merged into it.

    Ties go to the lower place.
    """
    kept, features, sizes = tokens.kept, tokens.features.astype(np.float64), tokens.sizes
    directions = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    similarity = directions[::2] @ directions[1::2].T
    partner = similarity.argmax(axis=1)
    # stable: of equal similarities, the lower place merges first
    closest = np.argsort(-similarity.max(axis=1), kind="stable")[:count]
    source, target = 2 * closest, 2 * partner[closest] + 1
    total, merged_sizes = features * sizes[:, None], sizes.copy()
    np.add.at(total, target, total[source])
    np.add.at(merged_sizes, target, sizes[source])
    stays = np.ones(len(kept), bool)
    stays[source] = False
    means = total[stays] / merged_sizes[stays, None]
    return Merged(kept[stays], means.astype(np.float32), merged_sizes[stays])
