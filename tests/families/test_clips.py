"""Clips as families cut them up: the published sizes, positions and prompts, and when each frame is seen."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.config import VideoConfig
from engine.errors import ImageError, RequestError
from engine.families import Frames, Turn, by_name, internvl2, llava_onevision, qwen2_5_vl, qwen2_vl
from engine.families.qwen2_vl.clips import frame_size
from engine.model_config import NativeSizeConfig, PromptConfig
from engine.video.facts import ClipFacts
from tests.families.fixtures import read_published
from tests.families.test_llava_onevision import CONFIG

INTERNVL, QWEN, WINDOWED = (read_published(name) for name in ("InternVL2-2B", "Qwen2-VL-2B", "Qwen2.5-VL-3B"))
TIMES = st.lists(st.floats(0, 100), min_size=1, max_size=20).map(sorted)


def frames(count: int, width: int = 56, height: int = 28, rate: float = 2.0) -> Frames:
    pictures = tuple(Image.new("RGB", (width, height), (index, 2 * index, 90)) for index in range(count))
    return Frames(pictures, tuple(index / rate for index in range(count)), count / rate, rate)


@given(TIMES, st.floats(0, 5) | st.just(0))
def test_spans_share_the_whole_clip(times: list[float], rest: float) -> None:
    """One behind the other, without gaps, each about its own moment; together they are the clip."""
    spans = Frames((), tuple(times), times[-1] + rest, 1.0).spans()
    assert spans.shape == (len(times), 2)
    assert spans[0, 0] == 0 and spans[-1, 1] == pytest.approx(1)
    assert_allclose(spans[1:, 0], spans[:-1, 1], atol=1e-12)
    assert (spans[:, 1] > spans[:, 0]).all()


def test_spans_end_half_way_to_the_next_frame() -> None:
    spans = Frames((), (1.0, 2.0, 2.0, 6.0), 8.0, 1.0).spans() * 8
    assert_allclose(spans, [[0, 1.5], [1.5, 2.75], [2.75, 4], [4, 8]], atol=1e-6)


def published_size(height: int, width: int, nframes: int, factor: int) -> tuple[int, int]:
    """`fetch_video` and `smart_resize` of qwen_vl_utils, where a side does not come to nothing."""
    least, most = 128 * factor**2, 768 * factor**2
    most = max(min(most, 128000 * factor * factor * 0.9 / nframes * 2), int(least * 1.05))
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (math.floor(side / shrink / factor) * factor for side in (height, width))
    elif tall * wide < least:
        stretch = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * stretch / factor) * factor for side in (height, width))
    return tall, wide


@settings(max_examples=2000)
@given(st.integers(1, 2200), st.integers(1, 2200), st.integers(1, 768))
def test_frames_of_qwen_have_the_published_size(height: int, width: int, count: int) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageError, match="200 times as long"):
            frame_size(QWEN, count, height, width)
        return
    expected = published_size(height, width, count + count % 2, 28)
    if min(expected):
        assert frame_size(QWEN, count, height, width) == expected
    rows = qwen2_vl.clip_rows(QWEN, count, width, height)
    assert len(rows) == (count + 1) // 2 and len(set(rows)) == 1


@pytest.mark.parametrize("most", [300, 900])
def test_a_build_for_smaller_pictures_takes_smaller_frames(most: int) -> None:
    """Where a picture may have fewer pixels than a frame, a frame has as many as a picture."""
    small = replace(QWEN, tiling=NativeSizeConfig(4 * 784, most * 784))
    tall, wide = frame_size(small, 8, 1080, 1920)
    assert tall * wide // 784 <= min(most, 768)
    assert sum(qwen2_vl.clip_rows(small, 8, 1920, 1080)) == 4 * tall * wide // 784
    assert qwen2_vl.clip_rows(small, 8, 1920, 1080)[0] <= small.most_tokens()


@settings(max_examples=300)
@given(st.integers(1, 9), st.floats(0.05, 60))
def test_positions_in_time(count: int, rate: float) -> None:
    """A step from pair to pair, or as many as its seconds have, in the published 32 bits."""
    clip = frames(count, rate=rate)
    for family, config in ((qwen2_vl, QWEN), (qwen2_5_vl, WINDOWED)):
        pieces = family.cut_clip(clip, config)
        pairs, rows, columns = pieces.pixels.shape[:3]
        assert pairs == (count + 1) // 2
        time = torch.arange(pairs).view(-1, 1).expand(-1, rows * columns)
        if config is WINDOWED:
            time = (time * (2 / rate) * 2).long()
        assert pieces.places is not None and pieces.times is not None
        assert_array_equal(pieces.places[:, 0], time.flatten().numpy())
        grid = np.indices((pairs, rows, columns)).reshape(3, -1)
        assert_array_equal(pieces.places[:, 1:], grid[1:].T)
        assert sum(family.clip_rows(config, count, 56, 28)) == pieces.num_rows() == len(pieces.times)


def test_a_pair_holds_both_frames_and_an_odd_one_is_its_own_partner() -> None:
    pixels = qwen2_vl.cut_clip(frames(3, 280, 280), QWEN).pixels.reshape(2, -1, 3, 2, 14, 14)
    red = pixels[:, 0, 0, :, 0, 0] * 0.26862954 + 0.48145466
    assert_allclose(red * 255, [[0, 1], [2, 2]], atol=1e-3)


def test_a_frame_of_internvl_is_one_tile() -> None:
    wide = frames(3, 1344, 448)
    pieces = internvl2.cut_clip(wide, INTERNVL)
    assert pieces.pixels.shape == (3, 3, 448, 448) and pieces.num_rows() == 3 * 256
    assert internvl2.clip_rows(INTERNVL, 3, 1344, 448) == [256] * 3
    assert_allclose(pieces.boxes[:256], pieces.boxes[256:512])
    assert pieces.boxes.min() == 0 and pieces.boxes.max() == 1


LINES = "Frame1: <img><IMG_CONTEXT><IMG_CONTEXT></img>\nFrame2: <img><IMG_CONTEXT></img>\n"


@pytest.mark.parametrize("template", ["Hermes-2", "internlm2-chat", "phi3-chat", "internvl2_5"])
def test_internvl_names_every_frame(template: str) -> None:
    config = replace(INTERNVL, prompt=PromptConfig(template))
    asked = internvl2.render_prompt(config, "Who?", [], clips=[[2, 1]])
    silent = internvl2.render_prompt(config, "Who?", [])
    assert asked.text == silent.text.replace("Who?", f"{LINES}Who?")
    assert asked.order == (0,)
    marked = internvl2.render_prompt(config, "<video>\nWho?", [], clips=[[2, 1]])
    assert marked == asked


def test_pictures_go_first_then_clips() -> None:
    prompt = internvl2.render_prompt(INTERNVL, "Who?", [1], clips=[[1], [1, 1]])
    assert prompt.order == (0, 1, 2)
    one = "<img><IMG_CONTEXT></img>\n"
    assert f"user\n{one}Frame1: {one}Frame1: {one}Frame2: {one}Who?" in prompt.text


@pytest.mark.parametrize(
    ("family", "config", "start"),
    [
        (qwen2_vl, QWEN, "<|vision_start|><|video_pad|><|video_pad|><|video_pad|><|vision_end|>"),
        (qwen2_5_vl, WINDOWED, "<|vision_start|><|video_pad|><|video_pad|><|video_pad|><|vision_end|>"),
    ],
)
def test_qwen_shows_all_frames_together(family: Any, config: Any, start: str) -> None:
    prompt = family.render_prompt(config, "Who?", [], clips=[[2, 1]])
    assert f"<|im_start|>user\n{start}Who?<|im_end|>" in prompt.text
    told = family.render_prompt(config, "And now?", [], [Turn("What is in <video>?", "A dog.")], clips=[[2, 1]])
    assert f"user\nWhat is in {start}?<|im_end|>" in told.text
    assert told.clip_token == "<|video_pad|>"


def test_marks_are_in_their_order() -> None:
    prompt = qwen2_vl.render_prompt(QWEN, "<video> <image> <video>", [1], clips=[[1], [1]])
    assert prompt.order == (1, 0, 2)


@pytest.mark.parametrize("text", ["Is <video>?", "<video> <video> <video>?"])
def test_other_numbers_of_marks_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"marks <video> in the question: .* clips: 2; give one mark per clip"):
        qwen2_vl.render_prompt(QWEN, text, [], clips=[[1], [1]])
    with pytest.raises(RequestError, match="clips: 0"):
        qwen2_vl.render_prompt(QWEN, text, [])


@pytest.mark.parametrize("name", ["internvl2", "internvl", "qwen2_vl", "qwen2_5_vl", "llava_onevision"])
def test_every_family_has_a_rule(name: str) -> None:
    family = by_name(name)
    facts = ClipFacts(300, 30.0, 10.0, 640, 480)
    chosen = family.choose_frames(facts, VideoConfig())
    assert len(chosen) == {"internvl2": 8, "internvl": 8, "llava_onevision": 32}.get(name, 20)
    assert len(family.choose_frames(facts, VideoConfig(frames=4))) == 4
    assert len(family.choose_frames(facts, VideoConfig(max_frames=4))) == 4


def test_llava_pools_frames_and_ends_them_once() -> None:
    rows = llava_onevision.clip_rows(CONFIG, 3, 640, 480)
    pieces = llava_onevision.cut_clip(frames(3), CONFIG)
    assert sum(rows) == pieces.num_rows() == 3 * 196 + 1
    assert len(pieces.boxes) == 3 * 196 and len(pieces.placed()) == 3 * 196
    packing = pieces.packing
    assert packing is not None
    assert_allclose(packing.weights.sum(axis=1), 1, atol=1e-6)
    # Each row is of its own frame.
    own = packing.taps[:-1].reshape(3, -1) // CONFIG.vision.rows_per_tile()
    assert_array_equal(own, np.repeat(np.arange(3)[:, None], own.shape[1], axis=1))
