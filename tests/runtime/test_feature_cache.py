"""Visual features that are kept: what is encoded, what is forgotten, and that answers do not change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from engine.config import ExitConfig, SamplingConfig
from engine.families import Packing, Pieces
from engine.runtime.feature_cache import FeatureCache
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.vision import VisionEncoder
from engine.runtime.work import Encode
from tests.fake_device import DEVICE, FakeDevice

TOKENS, WIDTH = 2, 3
TILE_BYTES = TOKENS * WIDTH * 4


class Vision:
    """Each feature is the mean of its tile. `calls`: tiles of each call."""

    pieces_per_call = 2

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        self.calls.append(len(pixel_values))
        means = pixel_values.mean(axis=(1, 2, 3))
        return np.repeat(means, TOKENS)[:, None] * np.ones((1, WIDTH), np.float32)


def picture(value: float, tiles: int = 1) -> np.ndarray:
    return np.full((tiles, 3, 4, 4), value, np.float32)


def test_pieces_are_alike_in_all_that_a_model_reads_of_them() -> None:
    """Pixels, how they are packed, when they are seen; and each array's shape."""
    pixels, boxes = np.zeros((2, 6), np.float32), np.zeros((2, 4), np.float32)
    taps, weights, placed = np.array([[0], [1]]), np.ones((2, 1), np.float32), np.arange(2)
    packing = Packing(taps, weights, placed)
    different = [
        Pieces(pixels, boxes),
        Pieces(pixels.reshape(4, 3), boxes),
        Pieces(pixels + 1, boxes),
        Pieces(pixels, boxes, packing=packing),
        Pieces(pixels, boxes, packing=replace(packing, taps=taps[::-1])),
        Pieces(pixels, boxes, packing=replace(packing, weights=weights / 2)),
        Pieces(pixels, boxes, packing=replace(packing, placed=placed[:1])),
        Pieces(pixels, boxes, times=np.array([[0, 0.5], [0.5, 1]])),
        Pieces(pixels, boxes, times=np.array([[0, 0.25], [0.25, 1]])),
    ]
    assert len({pieces.digest for pieces in different}) == len(different)
    assert different[0].digest == Pieces(pixels.copy(), boxes).digest


class Model:
    """As far as pictures go."""

    def __init__(self, tiles: int, vision: Vision | None = None) -> None:
        self.vision, self.features = vision or Vision(), FeatureCache(tiles * TILE_BYTES)

    def encode(self, *pictures: np.ndarray) -> list[np.ndarray]:
        parts = [Pieces(pixels, np.empty((0, 4), np.float32)) for pixels in pictures]
        works = [Encode(self, part, np.arange(len(part.pixels))) for part in parts]  # type: ignore[arg-type]
        for work in works:
            while not work.advance():
                pass
        return [work.result for work in works]


def test_a_picture_is_encoded_once() -> None:
    model = Model(tiles=10)
    first = model.encode(picture(1), picture(2, tiles=3), picture(1))
    again = model.encode(picture(2, tiles=3), picture(5))
    assert model.vision.calls == [1, 2, 1, 1], "at most so many tiles in a call, and no picture twice"
    assert [len(part) for part in (*first, *again)] == [2, 6, 2, 6, 2]
    for part, value in zip((*first, *again), (1, 2, 1, 2, 5), strict=True):
        assert_array_equal(part, np.full_like(part, value))


def test_as_many_tiles_of_another_picture_are_another_picture() -> None:
    model = Model(tiles=10)
    changed = picture(1, tiles=2)
    changed[1, 2, 3, 3] = np.nextafter(np.float32(1), np.float32(2))
    model.encode(picture(1, tiles=2))
    model.encode(changed)
    assert model.vision.calls == [2, 2]


def test_what_was_used_longest_ago_is_forgotten() -> None:
    model = Model(tiles=3)
    model.encode(picture(1), picture(2), picture(3))
    model.encode(picture(1))
    model.encode(picture(4))  # 2 goes
    model.encode(picture(1), picture(3), picture(4))
    assert model.vision.calls == [1] * 4
    model.encode(picture(2))
    assert model.vision.calls == [1] * 5


@pytest.mark.parametrize("tiles", [0, 1])
def test_more_than_is_kept_is_still_encoded(tiles: int) -> None:
    model = Model(tiles)
    for _ in range(2):
        (features,) = model.encode(picture(7, tiles=2))
        assert_array_equal(features, np.full((4, WIDTH), 7))
    assert model.vision.calls == [2, 2]


def test_features_stay_on_the_gpu() -> None:
    class OnGpu(Vision):
        def encode(self, pixel_values: np.ndarray) -> np.ndarray:
            import torch

            features: np.ndarray = torch.from_numpy(super().encode(pixel_values)).to(DEVICE)
            return features

    with FakeDevice() as device:
        model = Model(1, OnGpu())
        kept = [model.encode(picture(1), picture(2, tiles=3))[1] for _ in range(2)]
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
    assert sum(calls[before:]) == sum(calls[:before]) / 2, "each model each picture once; two of them come twice"
