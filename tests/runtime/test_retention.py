"""How many visual tokens a question keeps, and which tiles are encoded for them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig, Schedule, num_kept
from engine.errors import RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.guidance import Budget, count_kept, select
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.retention import Choice

NO_EXIT = ExitConfig(enabled=False)
SAMPLING = SamplingConfig(max_new_tokens=6)
ASK = "What colour is the large circle?"
FLAT = GuidanceConfig(schedule=Schedule.FLAT, retention_ratio=0.05)
SHARE = GuidanceConfig(retention_share=0.5, retention_least=0.05, retention_most=0.4)
WEIGHTS = arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 8, width=32))


@given(WEIGHTS, st.floats(0.01, 1), st.floats(0.01, 0.5), st.floats(0.5, 1))
def test_a_share_keeps_what_is_important_beside_the_largest(
    importance: np.ndarray, share: float, least: float, most: float
) -> None:
    guidance = GuidanceConfig(retention_share=share, retention_least=least, retention_most=most)
    count, budget = count_kept(importance, guidance)
    fewest, largest = num_kept(len(importance), least), num_kept(len(importance), most)
    assert 1 <= fewest <= count <= largest
    kept = select(importance, count)
    lost = np.delete(importance, kept)
    threshold = share * importance.max()
    if budget is not Budget.LEAST:
        assert importance[kept].min() >= threshold * (1 - 1e-6)
    if budget is not Budget.MOST:
        assert lost.max(initial=-1) < threshold * (1 + 1e-6)
    assert {Budget.LEAST: fewest, Budget.MOST: largest}.get(budget, count) == count


def test_a_share_of_a_known_map() -> None:
    importance = np.array([1, 10, 4, 5, 4.9, 0, 0, 0, 0, 0], np.float32)
    assert count_kept(importance, SHARE) == (2, Budget.SHARE)
    assert count_kept(importance, replace(SHARE, retention_share=0.1)) == (4, Budget.MOST)
    assert count_kept(importance, replace(SHARE, retention_least=0.3)) == (3, Budget.LEAST)
    assert count_kept(importance, GuidanceConfig(retention_ratio=0.3)) == (3, Budget.RATIO)
    assert count_kept(7 * importance, SHARE) == (2, Budget.SHARE)
    assert count_kept(importance[:0], SHARE)[0] == 0


@pytest.mark.parametrize("source", [source for source in GuidanceSource if not source.weighs()])
def test_what_has_no_importance_keeps_its_ratio(source: GuidanceSource) -> None:
    ramp = np.arange(10, dtype=np.float32)
    assert count_kept(ramp, replace(SHARE, source=source, retention_ratio=0.3)) == (3, Budget.RATIO)


def test_limits_that_contradict_each_other(pipeline: SglPipeline, picture: Image.Image) -> None:
    wrong = replace(SHARE, retention_least=0.5)
    with pytest.raises(RequestError, match=r"retention_least 0\.5 is above retention_most 0\.4; give less"):
        pipeline.answer(picture, ASK, guidance=wrong, exit=NO_EXIT)


def test_an_answer_says_how_many_and_why(pipeline: SglPipeline, picture: Image.Image) -> None:
    """Of each question its own, beside others."""
    tall = picture.rotate(90, expand=True)
    asked = [
        Question((image,), text, replace(SHARE, retention_share=share), NO_EXIT, SAMPLING)
        for image in (picture, tall)
        for text in (ASK, "And this?")
        for share in (0.05, 0.6, 0.8, 1.0)
    ]
    answers = pipeline.answer_batch(asked)
    for question, answer in zip(asked, answers, strict=True):
        assert answer.importance is not None and question.guidance is not None
        count, budget = count_kept(answer.importance, question.guidance)
        assert (answer.num_kept(), answer.budget) == (count, budget)
        assert_array_equal(answer.kept, select(answer.importance, count))
    assert {answer.budget for answer in answers} == {Budget.SHARE, Budget.LEAST, Budget.MOST}
    alone = pipeline.answer(picture, ASK, guidance=GuidanceConfig(enabled=False), exit=NO_EXIT, sampling=SAMPLING)
    assert alone.budget is None
    usual = pipeline.answer(picture, ASK, exit=NO_EXIT, sampling=SAMPLING)
    assert usual.budget is Budget.RATIO


@pytest.fixture
def fresh(engine_directory: Path) -> Iterator[SglPipeline]:
    """Without features of an earlier question."""
    with SglPipeline.load(engine_directory, threads=1, feature_cache=0) as pipeline:
        yield pipeline


@pytest.fixture
def encoded(fresh: SglPipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many tiles the large model was shown since this was last asked."""
    shown: list[int] = []
    encode = fresh.large.vision.encode

    def counted(pixel_values: np.ndarray) -> np.ndarray:
        shown.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(fresh.large.vision, "encode", counted)

    def since() -> int:
        count = sum(shown)
        shown.clear()
        return count

    return since


def encoded_share(found: Answer) -> float:
    return 1 - found.tiles_skipped / found.tiles


def check_same(found: Answer, expected: Answer) -> None:
    assert (found.token_ids, found.probabilities) == (expected.token_ids, expected.probabilities)
    assert_array_equal(found.kept, expected.kept)


@pytest.mark.parametrize("source", [GuidanceSource.SMALL, GuidanceSource.RANDOM])
def test_tiles_of_which_nothing_is_kept_are_never_encoded(
    fresh: SglPipeline,
    encoded: Callable[[], int],
    picture: Image.Image,
    source: GuidanceSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the answer is bit by bit the one of all tiles, of one picture and of several."""
    pictures = [(picture,), (picture.rotate(90, expand=True), picture), (picture.resize((30, 30)),)]
    skipped = 0
    for number, images in enumerate(pictures):
        for ratio in (0.01, 0.05, 0.2):
            guidance = replace(FLAT, source=source, retention_ratio=ratio)
            options = {"exit": NO_EXIT, "guidance": guidance, "sampling": replace(SAMPLING, seed=number)}
            found = fresh.answer(images, ASK, **options)  # type: ignore[arg-type]
            assert found.kept is not None
            assert encoded() == found.tiles - found.tiles_skipped
            each = found.visual_tokens // found.tiles
            assert found.tiles - found.tiles_skipped == len(np.unique(found.kept // each))
            skipped += found.tiles_skipped
            with monkeypatch.context() as patch:
                patch.setattr(Choice, "needed", lambda self, guidance: None)
                whole = fresh.answer(images, ASK, **options)  # type: ignore[arg-type]
            assert (encoded(), whole.tiles_skipped) == (whole.tiles, 0)
            check_same(found, whole)
    assert skipped > 5


@pytest.mark.parametrize(
    "guidance",
    [
        GuidanceConfig(enabled=False),
        GuidanceConfig(prune_layer=1, retention_ratio=0.01),
        GuidanceConfig(source=GuidanceSource.TOME, retention_ratio=0.05),
        replace(FLAT, retention_ratio=1.0),
    ],
    ids=["unguided", "later", "merged", "all kept"],
)
def test_whatever_a_layer_sees_is_encoded(
    fresh: SglPipeline, encoded: Callable[[], int], picture: Image.Image, guidance: GuidanceConfig
) -> None:
    answer = fresh.answer(picture, ASK, guidance=guidance, exit=NO_EXIT, sampling=SAMPLING)
    assert (encoded(), answer.tiles_skipped) == (answer.tiles, 0)


@pytest.mark.parametrize("source", [GuidanceSource.SMALL, GuidanceSource.RANDOM])
def test_before_a_later_layer_only_tiles_of_important_tokens_are_encoded(
    fresh: SglPipeline, encoded: Callable[[], int], picture: Image.Image, source: GuidanceSource
) -> None:
    later = GuidanceConfig(source=source, prune_layer=1, retention_ratio=0.01)
    shares, pictures = [], (picture, picture.rotate(90, expand=True))
    for part in (0.001, 0.03, 0.2, 1.0):
        guidance = replace(later, tile_retention=part)
        found = fresh.answer(pictures, ASK, guidance=guidance, exit=NO_EXIT, sampling=SAMPLING)
        assert found.importance is not None and found.kept is not None
        assert_array_equal(found.kept, select(found.importance, guidance.num_kept(found.visual_tokens)))
        important = np.union1d(found.kept, select(found.importance, num_kept(found.visual_tokens, part)))
        each = found.visual_tokens // found.tiles
        assert encoded() == found.tiles - found.tiles_skipped == len(np.unique(important // each))
        seen, kept, layers = encoded_share(found), len(found.kept) / found.visual_tokens, found.num_layers
        assert found.average_retention() == pytest.approx((seen + (layers - 1) * kept) / layers)
        shares.append(seen)
    assert shares == sorted(shares) and shares[0] < shares[-1] == 1
    every = fresh.answer(pictures, ASK, guidance=later, exit=NO_EXIT, sampling=SAMPLING)
    check_same(found, every)


def test_an_early_exit_encodes_nothing_of_the_large_model(
    fresh: SglPipeline, encoded: Callable[[], int], picture: Image.Image
) -> None:
    answer = fresh.answer(picture, ASK, guidance=FLAT, exit=ExitConfig(exit_threshold=0.0), sampling=SAMPLING)
    assert answer.answered_by is AnsweredBy.SMALL
    assert (encoded(), answer.tiles_skipped) == (0, 0)
    assert answer.tiles > 1


def test_what_is_known_of_a_picture_is_not_encoded_again(
    engine_directory: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all its tiles, or of the same ones; bit by bit."""

    def ask(pipeline: SglPipeline, guidance: GuidanceConfig) -> Answer:
        return pipeline.answer(picture, ASK, guidance=guidance, exit=NO_EXIT, sampling=SAMPLING)

    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        first = ask(pipeline, FLAT)
        shown: list[np.ndarray] = []
        encode = pipeline.large.vision.encode
        monkeypatch.setattr(pipeline.large.vision, "encode", lambda pixels: shown.append(pixels) or encode(pixels))
        check_same(ask(pipeline, FLAT), first)
        assert not shown
        ask(pipeline, GuidanceConfig(enabled=False))
        assert sum(map(len, shown)) == first.tiles
        shown.clear()
        for ratio in (0.02, 0.1, FLAT.retention_ratio):
            found = ask(pipeline, replace(FLAT, retention_ratio=ratio))
            assert not shown
        check_same(found, first)


def test_seconds_of_the_large_encoder_are_told(fresh: SglPipeline, picture: Image.Image) -> None:
    answer = fresh.answer(picture, ASK, guidance=FLAT, exit=NO_EXIT, sampling=SAMPLING)
    stages = ["small vision", "small prefill", "small decode", "large vision", "large prefill", "large decode"]
    assert list(answer.seconds) == stages
    assert answer.engine_seconds["large vision"] > 0
