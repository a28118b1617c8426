"""Tiling: properties, odd pictures, and transformers' image processor and pixel shuffle as oracles."""

import io
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.modeling_internvl import InternVLModel

from engine.errors import ImageError
from engine.families.internvl2.tiling import MEAN, STD, split_tiles, token_boxes
from engine.model_config import ModelConfig, TilingConfig
from tests.families.fixtures import read_size

SIDE = st.integers(1, 300)


def config_of(tiling: TilingConfig, image_size: int = 28) -> ModelConfig:
    config = read_size("2b")
    return replace(config, vision=replace(config.vision, image_size=image_size), tiling=tiling)


@st.composite
def tilings(draw: st.DrawFn) -> TilingConfig:
    most = draw(st.integers(1, 12))
    return TilingConfig(draw(st.integers(1, most)), most, draw(st.booleans()))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


def grids(tiling: TilingConfig) -> list[tuple[int, int]]:
    sides = range(1, tiling.max_tiles + 1)
    return [(c, r) for c in sides for r in sides if tiling.min_tiles <= c * r <= tiling.max_tiles]


def bytes_of(pixel_values: np.ndarray) -> np.ndarray:
    """[N,3,S,S] normalised -> uint8 [N,S,S,3]."""
    return np.rint((pixel_values.transpose(0, 2, 3, 1) * STD + MEAN) * 255).astype(np.uint8)


@given(width=SIDE, height=SIDE, tiling=tilings())
def test_grid_is_allowed_closest_and_covers_the_picture(width: int, height: int, tiling: TilingConfig) -> None:
    tiles = split_tiles(Image.new("RGB", (width, height)), config_of(tiling))
    assert tiles.pixel_values.shape == (len(tiles.boxes), 3, 28, 28)
    assert tiles.pixel_values.dtype == tiles.boxes.dtype == np.float32
    has_thumbnail = tiling.thumbnail and len(tiles.boxes) > 1
    boxes = tiles.boxes[:-1] if has_thumbnail else tiles.boxes
    if has_thumbnail:
        assert tiles.boxes[-1].tolist() == [0, 0, 1, 1]
    assert tiling.min_tiles <= len(boxes) <= tiling.max_tiles
    columns, rows = len(set(boxes[:, 0])), len(set(boxes[:, 1]))
    assert columns * rows == len(boxes)
    # reading order, each cell of the grid once
    row, column = np.divmod(np.arange(len(boxes)), columns)
    expected = np.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], axis=-1)
    np.testing.assert_allclose(boxes, expected, rtol=0, atol=1e-7)
    distances = [abs(width / height - c / r) for c, r in grids(tiling)]
    assert abs(width / height - columns / rows) == min(distances)


@given(width=SIDE, height=SIDE, tiling=tilings())
def test_agrees_with_the_processor_of_transformers(width: int, height: int, tiling: TilingConfig) -> None:
    # It always adds the thumbnail.
    tiling = replace(tiling, thumbnail=True)
    picture = noise(width, height)
    processor = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28},
        crop_to_patches=True,
        min_patches=tiling.min_tiles,
        max_patches=tiling.max_tiles,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    expected = processor(picture, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    np.testing.assert_allclose(split_tiles(picture, config_of(tiling)).pixel_values, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "tiles"), [((1, 1), 1), ((1, 5000), 13), ((5000, 1), 13), ((448, 448), 1), ((2, 1), 3)]
)
def test_extreme_shapes(size: tuple[int, int], tiles: int) -> None:
    assert len(split_tiles(noise(*size), config_of(TilingConfig(), 448)).boxes) == tiles


def test_a_larger_grid_needs_more_than_half_of_its_pixels() -> None:
    # n x n tiles of 28 from n * 28 / sqrt(2) on
    expected = {28: 1, 39: 1, 40: 5, 59: 5, 60: 10, 500: 10}
    config = config_of(TilingConfig())
    assert {side: len(split_tiles(Image.new("RGB", (side, side)), config).boxes) for side in expected} == expected


def test_a_tile_of_native_size_is_the_picture() -> None:
    picture = noise(28, 28)
    tiles = split_tiles(picture, config_of(TilingConfig(max_tiles=1)))
    np.testing.assert_array_equal(bytes_of(tiles.pixel_values)[0], np.asarray(picture))


def test_tiles_are_where_their_boxes_say() -> None:
    picture = noise(84, 56)
    tiles = split_tiles(picture, config_of(TilingConfig()))
    for pixels, (x0, y0, x1, y1) in zip(
        bytes_of(tiles.pixel_values)[:-1], tiles.boxes[:-1] * [84, 56, 84, 56], strict=True
    ):
        np.testing.assert_array_equal(pixels, np.asarray(picture.crop((round(x0), round(y0), round(x1), round(y1)))))


def test_transparency_is_dropped() -> None:
    picture = noise(60, 40)
    expected = split_tiles(picture, config_of(TilingConfig())).pixel_values
    alpha = Image.fromarray(np.arange(60 * 40, dtype=np.uint8).reshape(40, 60))
    transparent = Image.merge("RGBA", (*picture.split(), alpha))
    np.testing.assert_array_equal(split_tiles(transparent, config_of(TilingConfig())).pixel_values, expected)


def test_palette_is_looked_up_before_resizing() -> None:
    palette = noise(60, 40).quantize(16)
    expected = split_tiles(palette.convert("RGB"), config_of(TilingConfig())).pixel_values
    np.testing.assert_array_equal(split_tiles(palette, config_of(TilingConfig())).pixel_values, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "F"])
def test_grey_pictures_have_equal_colours(mode: str) -> None:
    pixels = bytes_of(split_tiles(noise(60, 40).convert("L").convert(mode), config_of(TilingConfig())).pixel_values)
    assert np.ptp(pixels) > 0
    assert (np.ptp(pixels, axis=-1) == 0).all()


def test_sixteen_bits_saturate_as_in_the_published_code() -> None:
    deep = Image.fromarray(np.full((28, 28), 40000, np.uint16))
    assert deep.mode == "I;16"
    assert (bytes_of(split_tiles(deep, config_of(TilingConfig())).pixel_values) == 255).all()


def test_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture = noise(60, 30)
    picture.save(file, "PNG", exif=exif)
    turned = Image.open(file)
    assert turned.getexif()[0x0112] == 6
    expected = split_tiles(picture, config_of(TilingConfig()))
    np.testing.assert_array_equal(split_tiles(turned, config_of(TilingConfig())).pixel_values, expected.pixel_values)


def test_unusable_pictures() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        split_tiles(Image.new("RGB", (0, 5)), config_of(TilingConfig()))
    with pytest.raises(ImageError, match="mode La"):
        split_tiles(Image.new("La", (5, 5)), config_of(TilingConfig()))


@given(width=SIDE, height=SIDE, tiling=tilings())
def test_token_boxes_partition_each_tile(width: int, height: int, tiling: TilingConfig) -> None:
    config = config_of(tiling, 112)
    boxes = split_tiles(Image.new("RGB", (width, height)), config).boxes
    tokens = token_boxes(config, boxes).reshape(len(boxes), 16, 4)
    np.testing.assert_allclose(tokens[:, 0, :2], boxes[:, :2], atol=1e-6)
    np.testing.assert_allclose(tokens[:, -1, 2:], boxes[:, 2:], atol=1e-6)
    areas = (tokens[..., 2:] - tokens[..., :2]).prod(-1)
    np.testing.assert_allclose(areas.sum(1), (boxes[:, 2:] - boxes[:, :2]).prod(-1), atol=1e-5)


def test_token_boxes_hold_the_patches_that_pixel_shuffle_joins() -> None:
    config = read_size("2b")
    side = config.vision.image_size // config.vision.patch_size
    centres = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(centres, centres, indexing="ij")
    patches = torch.tensor(np.stack([x, y], axis=-1))[None]
    shuffle = partial(InternVLModel.pixel_shuffle, Mock(spec=InternVLModel))
    joined = shuffle(patches, config.vision.downsample_ratio).reshape(-1, 4, 2).numpy()
    half = 0.5 / side
    expected = np.concatenate([joined.min(1) - half, joined.max(1) + half], axis=-1)
    whole = np.array([[0, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(token_boxes(config, whole), expected, atol=1e-6)
    left_half = np.array([[0, 0, 0.5, 1]], np.float32)
    np.testing.assert_allclose(token_boxes(config, left_half), expected * [0.5, 1, 0.5, 1], atol=1e-6)
