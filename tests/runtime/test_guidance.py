"""Guidance against an eager model's attentions, a brute-force overlap and its own invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import LlamaConfig, LlamaModel

from engine.config import GuidanceConfig, Schedule, ScoreRows
from engine.errors import EngineError
from engine.runtime.grid import Grid
from engine.runtime.guidance import counts_decode, importance, keep_rows, resample, score_rows, select

LENGTH = 14
ONE_IMAGE = np.arange(3, 8)
TWO_IMAGES = np.array([2, 3, 4, 7, 8, 9, 10])
LAYERS = 5
SCORES = arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1e4, width=32))


@pytest.fixture(scope="module")
def attentions() -> np.ndarray:
    """[L,H,S,S] of a tiny random model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        num_key_value_heads=3,
        vocab_size=32,
    )
    model = LlamaModel(config)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(torch.randint(32, (1, LENGTH)), output_attentions=True)
    return torch.cat(outputs.attentions).numpy()


def received(attentions: np.ndarray, rows: np.ndarray, visual: np.ndarray) -> np.ndarray:
    """[L,H,S,S], [R], [V] -> [L,V]."""
    return attentions[:, :, rows][..., visual].sum(axis=(1, 2))


@pytest.mark.parametrize("visual", [ONE_IMAGE, TWO_IMAGES, np.array([0]), np.array([LENGTH - 2])])
@pytest.mark.parametrize("layers", [0.2, 0.5, 1.0])
def test_all_prompt_text_counts(attentions: np.ndarray, visual: np.ndarray, layers: float) -> None:
    """Rows that are left out add nothing: the sum over ALL text rows is the same."""
    guidance = GuidanceConfig(score_rows=ScoreRows.PROMPT, score_layers=layers)
    rows = score_rows(visual, LENGTH, guidance.score_rows)
    scores = received(attentions, rows, visual)
    text = np.setdiff1d(np.arange(LENGTH), visual)
    counted = attentions[: guidance.num_score_layers(LAYERS)]
    expected = counted[:, :, text][..., visual].astype(np.float64).sum(axis=(0, 1, 2))
    actual = importance(scores, guidance)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "one_image", "two_images"),
    [
        (ScoreRows.BEHIND_LAST, range(8, 14), [11, 12, 13]),
        (ScoreRows.PROMPT_AND_GENERATED, range(8, 14), [5, 6, 11, 12, 13]),
        (ScoreRows.PROMPT, range(8, 14), [5, 6, 11, 12, 13]),
        (ScoreRows.RELEASED, range(7, 14), [10, 11, 12, 13]),
        (ScoreRows.LAST_PROMPT, [13], [13]),
        (ScoreRows.QUESTION, range(8, 14), [11, 12, 13]),
        (ScoreRows.GENERATED, [], []),
    ],
)
def test_rows(rows: ScoreRows, one_image: list[int], two_images: list[int]) -> None:
    for visual, expected in ((ONE_IMAGE, one_image), (TWO_IMAGES, two_images)):
        chosen = score_rows(visual, LENGTH, rows)
        assert chosen.dtype == np.int64
        assert chosen.tolist() == list(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.booleans())
def test_rows_against_the_words_that_define_them(visual: list[bool], shuffled: bool) -> None:
    positions = np.flatnonzero(visual)
    given = positions[::-1].copy() if shuffled else positions
    behind_first = [row for row, is_visual in enumerate(visual) if not is_visual and any(visual[:row])]
    behind_last = [row for row in behind_first if not any(visual[row:])]
    last = [row for row, is_visual in enumerate(visual) if is_visual][-1:]
    expected = {
        ScoreRows.PROMPT: behind_first,
        ScoreRows.PROMPT_AND_GENERATED: behind_first,
        ScoreRows.BEHIND_LAST: behind_last,
        ScoreRows.LAST_PROMPT: behind_first[-1:],
        ScoreRows.GENERATED: [],
        ScoreRows.QUESTION: behind_last,
        ScoreRows.RELEASED: last + behind_last,
    }
    assert {rows: score_rows(given, len(visual), rows).tolist() for rows in ScoreRows} == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [([10, 11], [10, 11, 13]), ([6, 7, 8, 9], [8, 9, 13]), ([13], [13]), ([], range(8, 14)), ([2, 3], range(8, 14))],
)
def test_rows_of_the_question_and_the_last(question: list[int], expected: list[int]) -> None:
    """Of what stands behind the picture; all of that where no question does."""
    rows = score_rows(ONE_IMAGE, LENGTH, ScoreRows.QUESTION, np.array(question, np.int64))
    assert rows.tolist() == list(expected)


def test_the_authors_count_from_the_last_visual_token_on() -> None:
    assert score_rows(np.array([2, 3, 6, 7]), 10, ScoreRows.RELEASED).tolist() == [7, 8, 9]


@given(st.integers(0, 10), st.integers(1, 10), st.integers(0, 10))
def test_of_one_picture_nothing_stands_between_pictures(before: int, picture: int, behind: int) -> None:
    """The default is what the paper sums."""
    positions, length = np.arange(before, before + picture), before + picture + behind
    default = score_rows(positions, length, GuidanceConfig().score_rows)
    np.testing.assert_array_equal(default, score_rows(positions, length, ScoreRows.PROMPT_AND_GENERATED))
    assert counts_decode(GuidanceConfig().score_rows)


def test_rows_behind_the_last_picture_are_fair_to_all() -> None:
    """Where every row looks at all that it sees alike, all pictures are equally important."""
    visual, length = np.array([1, 2, 5, 6, 9, 10]), 14
    attention = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    received = {rows: attention[score_rows(visual, length, rows)][:, visual].sum(axis=0) for rows in ScoreRows}
    assert np.ptp(received[ScoreRows.BEHIND_LAST]) == 0
    first, _, _, _, _, last = received[ScoreRows.PROMPT_AND_GENERATED]
    assert first > 2 * last


@pytest.mark.parametrize("rows", ScoreRows)
def test_a_prompt_without_pictures_scores_nothing(rows: ScoreRows) -> None:
    assert len(score_rows(np.zeros(0, np.int64), LENGTH, rows)) == 0


def test_norms_weigh_what_was_received() -> None:
    scores, norms = np.array([[1, 2, 4], [3, 0, 4]], np.float32), np.array([2, 1, 0.5], np.float32)
    assert importance(scores, GuidanceConfig(), norms).tolist() == [8, 2, 4]
    assert importance(scores, GuidanceConfig(score_layers=0.5), norms).tolist() == [2, 2, 2]


def test_which_rows_count_generated_tokens() -> None:
    assert {rows for rows in ScoreRows if counts_decode(rows)} == {
        ScoreRows.BEHIND_LAST,
        ScoreRows.PROMPT_AND_GENERATED,
        ScoreRows.GENERATED,
        ScoreRows.RELEASED,
    }


@given(st.integers(1, 8), st.integers(1, 12), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_importance_is_additive(num_layers: int, visual: int, layers: float, seed: int) -> None:
    """Over rows, and over the layers that count; the others do not matter."""
    one, two = np.random.default_rng(seed).random((2, num_layers, visual), np.float32)
    guidance = GuidanceConfig(score_layers=layers)
    parts = importance(one, guidance) + importance(two, guidance)
    np.testing.assert_allclose(importance(one + two, guidance), parts, rtol=1e-5)
    counted = guidance.num_score_layers(num_layers)
    per_layer = sum(importance(one[layer : layer + 1], GuidanceConfig()) for layer in range(counted))
    np.testing.assert_allclose(importance(one, guidance), per_layer, rtol=1e-5)


@given(SCORES, st.data())
def test_selection(scores: np.ndarray, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, len(scores)))
    kept = select(scores, num_kept)
    assert kept.dtype == np.int64
    assert len(kept) == num_kept
    assert np.all(np.diff(kept) > 0)
    dropped = np.setdiff1d(np.arange(len(scores)), kept)
    for loser in dropped:
        assert np.all(scores[kept] >= scores[loser])
        ties = kept[scores[kept] == scores[loser]]
        assert np.all(ties < loser)


@given(arrays(np.float32, st.integers(1, 50), elements=st.integers(0, 1000)), st.data())
def test_selection_is_invariant_under_monotone_scaling(scores: np.ndarray, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, len(scores)))
    scale, shift = data.draw(st.sampled_from([0.5, 3, 100])), data.draw(st.integers(-100, 100))
    np.testing.assert_array_equal(select(scores, num_kept), select(scores * np.float32(scale) + shift, num_kept))
    np.testing.assert_array_equal(select(scores, num_kept), select(scores.astype(np.float64) ** 2, num_kept))


def test_selection_follows_its_tokens() -> None:
    scores = np.random.default_rng(0).permutation(40).astype(np.float32)
    order = np.random.default_rng(1).permutation(40)
    assert set(order[select(scores[order], 9)]) == set(select(scores, 9))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_importance_is_refused(broken: float) -> None:
    with pytest.raises(EngineError, match=f"visual token 2 is {broken}"):
        select(np.array([0, 1, broken, 2], np.float32), 1)


@given(st.integers(1, 60), st.data())
def test_text_always_survives(length: int, data: st.DataObject) -> None:
    visual = np.array(sorted(data.draw(st.sets(st.integers(0, length - 1)))), np.int64)
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, max(0, len(visual) - 1))))), np.int64)[: len(visual)]
    rows = keep_rows(visual, kept, length)
    assert rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0)
    text = set(range(length)) - set(visual.tolist())
    assert set(rows.tolist()) == text | set(visual[kept].tolist())
    assert len(rows) == len(text) + len(kept)


def test_keeping_all_is_the_identity() -> None:
    np.testing.assert_array_equal(keep_rows(TWO_IMAGES, np.arange(len(TWO_IMAGES)), LENGTH), np.arange(LENGTH))


def grid(columns: int, rows: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> np.ndarray:
    """-> float32 [rows*columns,4]: an even partition of a box, row by row."""
    x, y = np.linspace(box[0], box[2], columns + 1), np.linspace(box[1], box[3], rows + 1)
    cells = [(x[i], y[j], x[i + 1], y[j + 1]) for j in range(rows) for i in range(columns)]
    return np.array(cells, np.float32)


def tiled(columns: int, rows: int, side: int) -> np.ndarray:
    """Tiles of side x side tokens each, tile by tile, and, if there are several, a thumbnail of as many tokens last."""
    tiles = [grid(side, side, tuple(tile)) for tile in grid(columns, rows)]
    return np.concatenate([*tiles, *([grid(side, side)] if len(tiles) > 1 else [])])


def one_picture(boxes: np.ndarray) -> Grid:
    return Grid(boxes, np.zeros(len(boxes), np.int64))


def overlap_sum(values: np.ndarray, from_boxes: np.ndarray, to_boxes: np.ndarray) -> np.ndarray:
    """The same resampling for one scale, pair by pair."""
    total = np.zeros(len(to_boxes))
    for w, target in enumerate(to_boxes.astype(np.float64)):
        for value, source in zip(values, from_boxes.astype(np.float64), strict=True):
            sides = np.minimum(target[2:], source[2:]) - np.maximum(target[:2], source[:2])
            total[w] += value * np.prod(np.maximum(sides, 0)) / np.prod(source[2:] - source[:2])
    return total


SIDES = st.integers(1, 7)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_resampling_preserves_the_mass_of_a_partition(a: int, b: int, c: int, d: int, seed: int) -> None:
    source, target = grid(a, b), grid(c, d)
    values = np.random.default_rng(seed).random(len(source), np.float32)
    resampled = resample(values, one_picture(source), one_picture(target))
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, overlap_sum(values, source, target), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(resampled.sum(dtype=np.float64), values.sum(dtype=np.float64), rtol=1e-5)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), SIDES, st.integers(0, 2**32 - 1))
def test_resampling_preserves_mass_over_tiles_and_thumbnail(
    a: int, b: int, c: int, d: int, side: int, seed: int
) -> None:
    """Whether or not both have as many scales: a single tile has no thumbnail."""
    source, target = tiled(a, b, 4), tiled(c, d, side)
    values = np.random.default_rng(seed).random(len(source), np.float32)
    resampled = resample(values, one_picture(source), one_picture(target))
    np.testing.assert_allclose(resampled.sum(dtype=np.float64), values.sum(dtype=np.float64), rtol=1e-4)


@given(st.integers(1, 4), st.integers(1, 3), SIDES, st.integers(0, 2**32 - 1))
def test_equal_grids_are_the_identity(columns: int, rows: int, side: int, seed: int) -> None:
    boxes = np.concatenate([tiled(columns, rows, side), grid(side, side)])
    images = np.repeat([0, 1], [len(boxes) - side**2, side**2])
    values = np.random.default_rng(seed).random(len(boxes), np.float32)
    np.testing.assert_array_equal(resample(values, Grid(boxes, images), Grid(boxes, images)), values)


@pytest.mark.parametrize(("columns", "rows"), [(2, 1), (3, 2), (4, 3)])
def test_the_order_of_the_target_tokens_does_not_matter(columns: int, rows: int) -> None:
    """A permuted target takes the general way, and has to find each token's own importance again."""
    boxes = tiled(columns, rows, 4)
    generator = np.random.default_rng(0)
    values, order = generator.random(len(boxes), np.float32), generator.permutation(len(boxes))
    resampled = resample(values, one_picture(boxes), one_picture(boxes[order]))
    np.testing.assert_allclose(resampled, values[order], rtol=1e-4, atol=1e-5)


def test_pictures_do_not_mix() -> None:
    source, target = grid(4, 4), grid(3, 3)
    one, two = np.random.default_rng(0).random((2, 16), np.float32)
    together = resample(
        np.concatenate([one, two]),
        Grid(np.concatenate([source, source]), np.repeat([0, 1], 16)),
        Grid(np.concatenate([target, target]), np.repeat([0, 1], 9)),
    )
    alone = [resample(values, one_picture(source), one_picture(target)) for values in (one, two)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6)


def test_a_thumbnail_feeds_the_thumbnail() -> None:
    source, target = tiled(2, 1, 4), tiled(3, 2, 4)
    values = np.zeros(len(source), np.float32)
    values[-16:] = np.arange(16)
    resampled = resample(values, one_picture(source), one_picture(target))
    np.testing.assert_allclose(resampled[-16:], np.arange(16), atol=1e-5)
    assert not resampled[:-16].any()


def test_a_thumbnail_does_not_outrank_the_tiles() -> None:
    """An even map of one scale gives every token of tiles and thumbnail the same importance."""
    source, target = grid(6, 6), tiled(4, 3, 4)
    resampled = resample(np.ones(36, np.float32), one_picture(source), one_picture(target))
    np.testing.assert_allclose(resampled, 36 / len(target), rtol=1e-5)


def test_what_was_looked_at_is_kept() -> None:
    """One bright corner of a coarse grid: the fine grid keeps just the tokens in that corner."""
    source, target = grid(2, 2), grid(6, 6)
    resampled = resample(np.array([0, 0, 1, 0], np.float32), one_picture(source), one_picture(target))
    corner = [row * 6 + column for row in (3, 4, 5) for column in (0, 1, 2)]
    assert select(resampled, 9).tolist() == corner


@pytest.mark.parametrize("retention", [0.03, 0.09, 0.35, 1.0])
def test_a_flat_schedule_prunes_before_the_first_layer(retention: float) -> None:
    """Of the same average, from any prune points; the paper's needs a layer for it."""
    asked = GuidanceConfig(average_retention=retention, schedule=Schedule.FLAT)
    for points in ((), (1, 4), (2, 4, 9)):
        flat = asked.resolve(24, points)
        assert (flat.prune_layer, flat.retention_ratio) == (0, pytest.approx(retention))
        assert flat.average(24) == pytest.approx(retention)
    ratio = GuidanceConfig(retention_ratio=retention, schedule=Schedule.FLAT).resolve(24, (1, 4))
    assert (ratio.prune_layer, ratio.retention_ratio) == (0, retention)


def test_the_papers_schedule_is_the_default() -> None:
    paper = GuidanceConfig(average_retention=0.09).resolve(24, (1, 2, 4))
    assert (paper.prune_layer, paper.average(24)) == (1, pytest.approx(0.09))
    assert GuidanceConfig(retention_ratio=0.1).resolve(24, (1, 2, 4)).prune_layer == 2
    named = GuidanceConfig(retention_ratio=0.1, prune_layer=4, schedule=Schedule.FLAT)
    assert named.resolve(24, (1, 2, 4)).prune_layer == 4
