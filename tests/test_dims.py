"""Ranges of named dimensions: everything on a target without plans, bounded and by phase on one with them."""

import pytest

from engine.dims import MAX_LOGIT_ROWS, MAX_SCORE_ROWS, Dim, Limits, Phase

DYNAMIC = Limits(max_tokens=5000, max_batch=3, max_tiles=7)
PLANNED = Limits(max_tokens=5000, max_batch=3, max_tiles=7, planned=True, max_kept_tokens=900)


def range_of(dim: Dim | int, phase: Phase) -> tuple[int, int]:
    assert isinstance(dim, Dim)
    return dim.during(phase).min, dim.during(phase).max


def test_without_plans_calls_are_bounded_by_max_tokens_only() -> None:
    for dim in (DYNAMIC.sequence(), DYNAMIC.kept(2), DYNAMIC.cache(1), DYNAMIC.score_rows(), DYNAMIC.logit_rows()):
        assert (dim.min, dim.max) == (1, 5000)  # type: ignore[union-attr]
    assert DYNAMIC.batch().max == 3
    assert DYNAMIC.visual().max == 3 * 5000


def test_a_prefill_is_for_one_request() -> None:
    assert range_of(PLANNED.batch(), Phase.PREFILL) == (1, 2)
    assert range_of(PLANNED.sequence(), Phase.PREFILL) == (1, 5000)
    assert range_of(PLANNED.kept(1), Phase.PREFILL) == (1, 900)
    assert range_of(PLANNED.visual(), Phase.PREFILL) == (1, 5000)
    assert range_of(PLANNED.score_rows(), Phase.PREFILL) == (1, MAX_SCORE_ROWS)
    assert range_of(PLANNED.logit_rows(), Phase.PREFILL) == (1, MAX_LOGIT_ROWS)


def test_decoding_feeds_each_request_one_token() -> None:
    assert range_of(PLANNED.batch(), Phase.DECODE) == (1, 3)
    for dim in (PLANNED.sequence(), PLANNED.kept(1), PLANNED.visual(), PLANNED.score_rows(), PLANNED.logit_rows()):
        assert range_of(dim, Phase.DECODE) == (1, 1)
    assert range_of(PLANNED.visual_columns(), Phase.DECODE) == (1, 5000)


def test_planned_caches_have_one_length() -> None:
    assert [PLANNED.cache(segment) for segment in range(3)] == [5000, 900, 900]


@pytest.mark.parametrize("max_batch", [1, 2])
def test_something_varies_in_every_phase(max_batch: int) -> None:
    assert Limits(5000, max_batch, 7, planned=True).batch().max == 2
