"""Visual features that are kept: what is encoded, what is forgotten, and that answers do not change."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from engine.config import ExitConfig, SamplingConfig
from engine.runtime.feature_cache import FeatureCache
from engine.runtime.job import Question
from engine.runtime.pipeline import SglPipeline
from engine.runtime.vision import VisionEncoder
from tests.fake_device import DEVICE, FakeDevice

TOKENS, WIDTH = 2, 3
TILE_BYTES = TOKENS * WIDTH * 4


class Encoder:
    """Each feature is the mean of its tile. `calls`: tiles of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        self.calls.append(len(pixel_values))
        means = pixel_values.mean(axis=(1, 2, 3))
        return np.repeat(means, TOKENS)[:, None] * np.ones((1, WIDTH), np.float32)


def picture(value: float, tiles: int = 1) -> np.ndarray:
    return np.full((tiles, 3, 4, 4), value, np.float32)


def keep(tiles: int) -> tuple[Encoder, FeatureCache]:
    encoder = Encoder()
    return encoder, FeatureCache(encoder, TOKENS, capacity=tiles * TILE_BYTES)


def test_a_picture_is_encoded_once() -> None:
    encoder, cache = keep(tiles=10)
    first = cache.encode([picture(1), picture(2, tiles=3), picture(1)])
    again = cache.encode([picture(2, tiles=3), picture(5)])
    assert encoder.calls == [4, 1]
    assert [len(part) for part in (*first, *again)] == [2, 6, 2, 6, 2]
    for part, value in zip((*first, *again), (1, 2, 1, 2, 5), strict=True):
        assert_array_equal(part, np.full_like(part, value))


def test_as_many_tiles_of_another_picture_are_another_picture() -> None:
    encoder, cache = keep(tiles=10)
    changed = picture(1, tiles=2)
    changed[1, 2, 3, 3] = np.nextafter(np.float32(1), np.float32(2))
    cache.encode([picture(1, tiles=2)])
    cache.encode([changed])
    assert encoder.calls == [2, 2]


def test_what_was_used_longest_ago_is_forgotten() -> None:
    encoder, cache = keep(tiles=3)
    cache.encode([picture(1), picture(2), picture(3)])
    cache.encode([picture(1)])
    cache.encode([picture(4)])  # 2 goes
    assert encoder.calls == [3, 1]
    cache.encode([picture(1), picture(3), picture(4)])
    assert encoder.calls == [3, 1]
    cache.encode([picture(2)])
    assert encoder.calls == [3, 1, 1]


@pytest.mark.parametrize("tiles", [0, 1])
def test_more_than_is_kept_is_still_encoded(tiles: int) -> None:
    encoder, cache = keep(tiles)
    for _ in range(2):
        (features,) = cache.encode([picture(7, tiles=2)])
        assert_array_equal(features, np.full((4, WIDTH), 7))
    assert encoder.calls == [2, 2]


def test_nothing_is_no_call() -> None:
    encoder, cache = keep(tiles=1)
    assert cache.encode([]) == []
    assert encoder.calls == []


def test_features_stay_on_the_gpu() -> None:
    class OnGpu(Encoder):
        def encode(self, pixel_values: np.ndarray) -> np.ndarray:
            import torch

            features: np.ndarray = torch.from_numpy(super().encode(pixel_values)).to(DEVICE)
            return features

    with FakeDevice() as device:
        cache = FeatureCache(OnGpu(), TOKENS, capacity=TILE_BYTES)
        kept = [cache.encode([picture(1), picture(2)])[1] for _ in range(2)]
        assert all(part.device == DEVICE for part in kept)
        assert device.waits == 0


def test_answers_are_the_same(engine_directory: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, from what is kept, and as one of several questions about one picture."""
    calls = []
    encode = VisionEncoder.encode

    def counted(self: VisionEncoder, pixel_values: np.ndarray) -> np.ndarray:
        calls.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(VisionEncoder, "encode", counted)
    settings = {"sampling": SamplingConfig(max_new_tokens=5), "exit": ExitConfig(exit_threshold=2.0)}
    small = picture.crop((0, 0, 60, 60))
    pictures = [(picture,), (picture, small), (), (small,)]
    forgetful = SglPipeline.load(engine_directory, threads=1, feature_cache=0)
    expected = [forgetful.answer(images, "What is there?", **settings).token_ids for images in pictures]  # type: ignore[arg-type]
    before = len(calls)
    pipeline = SglPipeline.load(engine_directory, threads=1)
    questions = [Question(images, "What is there?", **settings) for images in pictures]  # type: ignore[arg-type]
    for _ in range(2):
        assert [answer.token_ids for answer in pipeline.answer_batch(questions)] == expected
    assert len(calls) - before == 2, "each model once"
