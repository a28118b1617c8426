"""SGP on the host: from a model's attention to the prompt rows that the large model keeps."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import product

import numpy as np

from engine.config import GuidanceConfig, ScoreRows, num_kept
from engine.errors import EngineError
from engine.runtime.arrays import Array, array_namespace, to_host

SCALE_STEP = 2**0.5
"""Tokens of a picture whose areas differ by more are of different scales: a thumbnail's are 2 tile tokens or larger."""


def score_rows(
    visual_positions: np.ndarray, prompt_length: int, rows: ScoreRows, question: np.ndarray | None = None
) -> np.ndarray:
    """[V], [Q] -> int64 [R]: the prompt rows whose attention to the visual tokens counts, sorted.

    question: rows of the question as it was asked; where none stands behind the pictures, QUESTION is BEHIND_LAST.
    """
    is_text = np.ones(prompt_length, bool)
    is_text[visual_positions] = False
    # text before the first visual token cannot see one and would add zeros
    is_text[: visual_positions.min(initial=prompt_length)] = False
    text = np.flatnonzero(is_text)
    last_visual = visual_positions.max(initial=-1)
    match rows:
        case ScoreRows.PROMPT | ScoreRows.PROMPT_AND_GENERATED:
            return text
        case ScoreRows.BEHIND_LAST:
            return text[text > last_visual]
        case ScoreRows.QUESTION:
            behind = text[text > last_visual]
            asked = behind if question is None else np.intersect1d(behind, question)
            return np.union1d(asked, text[-1:]) if len(asked) else behind
        case ScoreRows.LAST_PROMPT:
            return text[-1:]
        case ScoreRows.GENERATED:
            return text[:0]
        case ScoreRows.RELEASED:
            return np.arange(last_visual, prompt_length) if len(visual_positions) else text[:0]


def counts_decode(rows: ScoreRows) -> bool:
    """Whether the rows of generated tokens count."""
    return rows not in (ScoreRows.PROMPT, ScoreRows.LAST_PROMPT, ScoreRows.QUESTION)


def importance(scores: Array, guidance: GuidanceConfig, norms: Array | None = None) -> np.ndarray:
    """[L,V], [V] -> float32 [V]: attention received, summed over the layers that count (eq. 5), times the norms."""
    xp = array_namespace(scores)
    layers = guidance.num_score_layers(len(scores))
    received = to_host(xp.sum(scores[:layers, :], axis=0, dtype=xp.float64))
    return (received if norms is None else received * to_host(norms)).astype(np.float32)


def fastv_importance(scores: Array, prune_layer: int) -> np.ndarray:
    """[L,V] -> float32 [V]: attention received in the last layer that sees every token (the sum over heads ranks as
    their mean does)."""
    return to_host(scores[prune_layer - 1]).copy()


class Budget(StrEnum):
    """Why so many visual tokens are kept."""

    RATIO = "ratio"
    """They are the same fraction of every question's."""
    SHARE = "share"
    """So many are important beside the most important one."""
    LEAST = "least"
    """Fewer are, and no question keeps fewer."""
    MOST = "most"
    """More are, and no question keeps more."""


def count_kept(importance: np.ndarray, guidance: GuidanceConfig) -> tuple[int, Budget]:
    """[V] -> how many are kept, at least 1 if there are any, and why."""
    tokens = len(importance)
    if guidance.retention_share is None or not guidance.source.weighs():
        return guidance.num_kept(tokens), Budget.RATIO
    threshold = guidance.retention_share * importance.max(initial=0)
    count = int(np.count_nonzero(importance >= threshold))
    least, most = (num_kept(tokens, part) for part in (guidance.retention_least, guidance.retention_most))
    if count < least:
        return least, Budget.LEAST
    return (most, Budget.MOST) if count > most else (count, Budget.SHARE)


def random_importance(visual_tokens: int, seed: int) -> np.ndarray:
    """-> float32 [V]: no token is preferred."""
    return np.random.default_rng(seed).random(visual_tokens, np.float32)


def select(importance: np.ndarray, num_kept: int) -> np.ndarray:
    """[V] -> int64 [num_kept]: the most important tokens, sorted; ties go to the lower position.

    Raises EngineError when an importance is not a number.
    """
    assert 0 <= num_kept <= len(importance), (num_kept, len(importance))
    broken = np.flatnonzero(~np.isfinite(importance))
    if len(broken):
        raise EngineError(
            f"importance of visual token {broken[0]} is {importance[broken[0]]}; "
            "the attention that ranks the tokens is broken, so check the checkpoints and rebuild the engine"
        )
    # stable: equal importances stay in order of position
    ranked = np.argsort(-importance, kind="stable")
    return np.sort(ranked[:num_kept])


def keep_rows(visual_positions: np.ndarray, kept: np.ndarray, sequence_length: int) -> np.ndarray:
    """[V], [N] -> int64 [S']: positions that survive, all text and the kept visual tokens, sorted."""
    survives = np.ones(sequence_length, bool)
    survives[visual_positions] = False
    survives[visual_positions[kept]] = True
    return np.flatnonzero(survives)


def resample(
    importance: np.ndarray,
    from_boxes: np.ndarray,
    to_boxes: np.ndarray,
    from_images: np.ndarray,
    to_images: np.ndarray,
) -> np.ndarray:
    """[V], [V,4], [W,4], [V], [W] -> float32 [W]: importance carried over to a model with another visual grid.

    boxes: x0 y0 x1 y1 of every token in its picture; images: which picture it belongs to.

    A token's importance is spread evenly over its box, and a target token receives what falls into its own box, so the
    total is preserved where the target covers the picture. Tiles and thumbnail are layers of different scale and each
    covers the whole picture: if both models have as many scales, the finest feeds the finest and so on. If not, every
    target scale receives the whole map, weighted by its share of the target tokens: tokens of all scales are then
    equally important on average, and a thumbnail's large boxes do not outrank the tiles' small ones.
    """
    if np.array_equal(from_boxes, to_boxes) and np.array_equal(from_images, to_images):
        return importance.astype(np.float32)
    resampled = np.zeros(len(to_boxes))
    for image in np.unique(to_images):
        sources = _scales(from_boxes, np.flatnonzero(from_images == image))
        targets = _scales(to_boxes, np.flatnonzero(to_images == image))
        for source, target, share in _routes(sources, targets):
            resampled[target] += share * _spread(importance[source], from_boxes[source], to_boxes[target])
    return resampled.astype(np.float32)


def _scales(boxes: np.ndarray, tokens: np.ndarray) -> list[np.ndarray]:
    """[V,4], [N] -> the same tokens in groups of similar area, finest first."""
    areas = _areas(boxes[tokens])
    order = np.argsort(areas, kind="stable")
    steps = np.flatnonzero(areas[order][1:] > areas[order][:-1] * SCALE_STEP)
    return np.split(tokens[order], steps + 1)


def _routes(
    sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Which source scale feeds which target scale, with which share of its importance."""
    if len(sources) == len(targets):
        yield from ((source, target, 1.0) for source, target in zip(sources, targets, strict=True))
    else:
        total = sum(map(len, targets))
        yield from ((source, target, len(target) / total) for source, target in product(sources, targets))


def _spread(values: np.ndarray, from_boxes: np.ndarray, to_boxes: np.ndarray) -> np.ndarray:
    """[N], [N,4], [M,4] -> [M]: values spread evenly over their boxes, collected in the target boxes.

    Overlap is separable, so the boxes' distinct x and y intervals suffice: two small products instead of [M,N].
    """
    from_x, from_column = _intervals(from_boxes, 0)
    from_y, from_row = _intervals(from_boxes, 1)
    to_x, to_column = _intervals(to_boxes, 0)
    to_y, to_row = _intervals(to_boxes, 1)
    density = np.zeros((len(from_y), len(from_x)))
    np.add.at(density, (from_row, from_column), values / _areas(from_boxes))
    collected = _overlap(to_y, from_y) @ density @ _overlap(to_x, from_x).T
    return collected[to_row, to_column]


def _areas(boxes: np.ndarray) -> np.ndarray:
    """[N,4] -> [N]."""
    areas = np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)
    assert np.all(areas > 0), "a visual token without area has no place in its picture"
    return areas


def _intervals(boxes: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """[N,4] -> the distinct intervals along an axis [P,2], and which one each box has [N]."""
    intervals, index = np.unique(boxes[:, axis::2].astype(np.float64), axis=0, return_inverse=True)
    return intervals, index.reshape(-1)


def _overlap(targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """[P,2], [Q,2] -> [P,Q]: common length of two intervals."""
    return np.maximum(
        0, np.minimum(targets[:, None, 1], sources[:, 1]) - np.maximum(targets[:, None, 0], sources[:, 0])
    )
