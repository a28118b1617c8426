"""SGP on the host: from a model's attention to the prompt rows that the large model keeps."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import product

import numpy as np

from engine.config import GuidanceConfig, ScoreRows, num_kept
from engine.errors import EngineError
from engine.runtime.arrays import Array, array_namespace, to_host
from engine.runtime.grid import Grid

SCALE_STEP = 2**0.5
"""Tokens of a picture whose areas differ by more are of different scales: a thumbnail's are 2 tile tokens or larger."""


def score_rows(
    visual_positions: np.ndarray,
    prompt_length: int,
    rows: ScoreRows,
    question: np.ndarray | None = None,
    feature_rows: np.ndarray | None = None,
) -> np.ndarray:
    """[V], [Q] -> int64 [R]: the prompt rows whose attention to the visual tokens counts, sorted.

    question: rows of the question as it was asked; where none stands behind the pictures, QUESTION is BEHIND_LAST.
    feature_rows: int64 [F], of the pictures, of which some may be no visual tokens; they are no text either.
    """
    is_text = np.ones(prompt_length, bool)
    is_text[visual_positions if feature_rows is None else feature_rows] = False
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


def select_by_frame(importance: np.ndarray, num_kept: int, frames: np.ndarray) -> np.ndarray:
    """[V] of each token its importance, and the frame that it is of -> int64 [num_kept]: the most important of every
    frame, of each the same share, sorted.

    What does not come out even goes to the frames that lack most, the first of those that lack as much.
    """
    sizes = np.bincount(frames)
    shares = sizes * num_kept / max(1, len(frames))
    quotas = np.floor(shares).astype(int)
    lacking = np.argsort(quotas - shares, kind="stable")
    quotas[lacking[: num_kept - quotas.sum()]] += 1
    kept = []
    for frame, quota in enumerate(quotas.tolist()):
        mine = np.flatnonzero(frames == frame)
        kept.append(mine[select(importance[mine], quota)])
    return np.sort(np.concatenate([np.empty(0, np.int64), *kept]))


def keep_rows(visual_positions: np.ndarray, kept: np.ndarray, sequence_length: int) -> np.ndarray:
    """[V], [N] -> int64 [S']: positions that survive, all text and the kept visual tokens, sorted."""
    survives = np.ones(sequence_length, bool)
    survives[visual_positions] = False
    survives[visual_positions[kept]] = True
    return np.flatnonzero(survives)


def resample(importance: np.ndarray, known: Grid, wanted: Grid) -> np.ndarray:
    """[V] of one grid -> float32 [W] of another: importance carried over to a model with other visual tokens.

    A token's importance is spread evenly over its box and its time, and a target token receives what falls into its
    own, so the total is preserved where the target covers the picture. Tiles and thumbnail are layers of different
    scale and each covers the whole picture: if both models have as many scales, the finest feeds the finest and so on.
    If not, every target scale receives the whole map, weighted by its share of the target tokens: tokens of all scales
    are then equally important on average, and a thumbnail's large boxes do not outrank the tiles' small ones.
    """
    if known.same(wanted):
        return importance.astype(np.float32)
    resampled = np.zeros(len(wanted.boxes))
    places, targets_places = _places(known), _places(wanted)
    for image in np.unique(wanted.images):
        sources = _scales(known.boxes, np.flatnonzero(known.images == image))
        targets = _scales(wanted.boxes, np.flatnonzero(wanted.images == image))
        for source, target, share in _routes(sources, targets):
            resampled[target] += share * _spread(importance[source], places[source], targets_places[target])
    return resampled.astype(np.float32)


def _places(grid: Grid) -> np.ndarray:
    """float64 [V,6]: x0 y0 t0 x1 y1 t1"""
    boxes, times = grid.boxes.astype(np.float64), grid.spans()
    return np.concatenate([boxes[:, :2], times[:, :1], boxes[:, 2:], times[:, 1:]], axis=1)


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


def _spread(values: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[N], [N,6], [M,6] -> [M]: values spread evenly over their places, collected in the target places.

    Overlap is separable, so the places' distinct intervals along x, y and time suffice: three small products instead of
    [M,N].
    """
    found = [_intervals(sources, axis) for axis in range(3)]
    wanted = [_intervals(targets, axis) for axis in range(3)]
    collected = np.zeros([len(intervals) for intervals, _ in found])
    np.add.at(collected, tuple(index for _, index in found), values / _areas(sources))
    for (ours, _), (theirs, _) in zip(wanted, found, strict=True):
        # The axis in front goes, and comes back behind the others.
        collected = np.tensordot(collected, _overlap(ours, theirs), axes=(0, 1))
    return collected[tuple(index for _, index in wanted)]


def _areas(places: np.ndarray) -> np.ndarray:
    """[N,4] boxes, or [N,6] with times -> [N]."""
    half = places.shape[1] // 2
    areas = np.prod(places[:, half:].astype(np.float64) - places[:, :half], axis=1)
    assert np.all(areas > 0), "a visual token without area has no place in its picture"
    return areas


def _intervals(places: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """[N,6] -> the distinct intervals along an axis [P,2], and which one each place has [N]."""
    intervals, index = np.unique(places[:, axis::3], axis=0, return_inverse=True)
    return intervals, index.reshape(-1)


def _overlap(targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """[P,2], [Q,2] -> [P,Q]: common length of two intervals."""
    return np.maximum(
        0, np.minimum(targets[:, None, 1], sources[:, 1]) - np.maximum(targets[:, None, 0], sources[:, 0])
    )
