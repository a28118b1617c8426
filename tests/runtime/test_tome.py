"""Merging of visual tokens against a plain reading of the paper's pseudo-code, and by what merging must preserve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from engine.runtime.tome import Merged, merge, merge_round


def plain_merge(features: np.ndarray, num_kept: int) -> list[tuple[int, np.ndarray, list[int]]]:
    """Token by token, each as its place, its mean feature and what it stands for (ToMe, section 3 and appendix D):

    split the tokens alternately into A and B, draw one edge from each token of A to its most similar one of B, keep the
    most similar edges, merge along them weighted by size.
    """
    tokens = [(place, feature.astype(np.float64), [place]) for place, feature in enumerate(features)]
    while len(tokens) > num_kept:
        a, b = tokens[0::2], tokens[1::2]
        edges = []
        for i, (_, one, _) in enumerate(a):
            cosines = [float(one @ other) / (math.hypot(*one) * math.hypot(*other)) for _, other, _ in b]
            best = max(range(len(b)), key=lambda j: (cosines[j], -j))
            edges.append((-cosines[best], i, best))
        edges.sort()
        merged = edges[: min(len(tokens) // 2, len(tokens) - num_kept)]
        groups = {j: [b[j]] for j in range(len(b))}
        for _, i, j in merged:
            groups[j].append(a[i])
        gone = {i for _, i, _ in merged}
        tokens = [token for i, token in enumerate(a) if i not in gone]
        for j, group in groups.items():
            sizes = [len(members) for _, _, members in group]
            mean = sum(size * feature for size, (_, feature, _) in zip(sizes, group, strict=True)) / sum(sizes)
            tokens.append((b[j][0], mean, [place for _, _, members in group for place in members]))
        tokens.sort(key=lambda token: token[0])
    return tokens


def random_features(count: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


@pytest.mark.parametrize(("count", "num_kept"), [(1, 1), (2, 1), (7, 7), (7, 4), (7, 3), (33, 1), (80, 9), (81, 28)])
def test_merging_is_the_papers(count: int, num_kept: int) -> None:
    features = random_features(count)
    merged, expected = merge(features, num_kept), plain_merge(features, num_kept)
    assert merged.kept.tolist() == [place for place, _, _ in expected]
    assert merged.sizes.tolist() == [len(members) for _, _, members in expected]
    assert_allclose(merged.features, [feature for _, feature, _ in expected], rtol=1e-4, atol=1e-6)
    for feature, (_, _, members) in zip(merged.features, expected, strict=True):
        assert_allclose(feature, features[members].mean(axis=0), rtol=1e-4, atol=1e-6)


@given(st.data())
def test_nothing_is_lost(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    num_kept = data.draw(st.integers(1, count))
    features = random_features(count, seed=data.draw(st.integers(0, 99)))
    merged = merge(features, num_kept)
    assert len(merged.kept) == len(merged.sizes) == len(merged.features) == num_kept
    assert_array_equal(merged.kept, np.unique(merged.kept))
    assert merged.sizes.sum() == count
    assert (merged.sizes > 0).all()
    mean = (merged.features.astype(np.float64) * merged.sizes[:, None]).sum(axis=0) / count
    assert_allclose(mean, features.astype(np.float64).mean(axis=0), atol=1e-5)


def test_similar_tokens_merge_first() -> None:
    features = np.array([[1, 0], [0, 1], [0, 3], [-1, 0], [0.9, 0.1], [1, 0.1]], np.float32)
    merged = merge(features, 4)
    assert merged.kept.tolist() == [0, 1, 3, 5]
    assert merged.sizes.tolist() == [1, 2, 1, 2]
    assert_allclose(merged.features, [[1, 0], [0, 2], [-1, 0], [0.95, 0.1]])


def test_a_round_merges_at_most_half() -> None:
    features = np.repeat(np.eye(2, dtype=np.float32), 8, axis=0)
    tokens = Merged(np.arange(16), features, np.ones(16, np.int64))
    assert len(merge_round(tokens, 8).kept) == 8
    assert merge(features, 2).sizes.tolist() == [8, 8]


def test_a_token_of_zeros_is_merged_without_nan() -> None:
    assert np.isfinite(merge(np.zeros((5, 3), np.float32), 1).features).all()
