"""Clips of every kind, frame by frame against OpenCV and against decoding all of them."""

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageError, RequestError
from engine.video.clip import Clip
from engine.video.facts import ClipFacts
from engine.video.reader import read_clip
from tests import clips

BY_OPENCV = ("H.264", "HEVC", "VP9", "MPEG-4", "MPEG-2", "VP8")
"""All but AV1, which its wheel does not decode."""
FRAMES, SIZE = 45, (96, 64)


def everything(facts: ClipFacts) -> Sequence[int]:
    return range(facts.frames)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clip of each codec, with four key frames behind the first."""
    directory = tmp_path_factory.mktemp("clips")
    for name, (codec, container) in clips.CODECS.items():
        (directory / name).write_bytes(clips.clip(codec, container, FRAMES, SIZE))
    return {name: directory / name for name in clips.CODECS}


def by_opencv(path: Path) -> list[np.ndarray]:
    """uint8 [H,W,3] of all frames."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        is_there, frame = capture.read()
        if not is_there:
            return frames
        frames.append(frame[..., ::-1])


def assert_shows(clip: Clip, frames: Sequence[np.ndarray]) -> None:
    """Every chosen frame is the one of its index, bit by bit."""
    assert all(picture.mode == "RGB" for picture in clip.pictures)
    for index, picture in zip(clip.indices, clip.pictures, strict=True):
        np.testing.assert_array_equal(picture, frames[index], err_msg=f"frame {index}")


@pytest.mark.parametrize("name", BY_OPENCV)
def test_pixels_are_those_of_opencv(name: str, files: dict[str, Path]) -> None:
    clip, frames = read_clip(files[name], everything), by_opencv(files[name])
    assert len(frames) == len(clip.pictures) == FRAMES
    assert_shows(clip, frames)


@pytest.mark.parametrize("name", clips.CODECS)
def test_chosen_frames_are_those_that_decoding_all_finds(name: str, files: dict[str, Path]) -> None:
    """Near each other, behind key frames, at both ends, and one of them twice."""
    data = files[name].read_bytes()
    frames, draw = clips.decoded(data), random.Random(name)
    assert len(frames) == FRAMES
    some = [sorted(draw.choices(range(FRAMES), k=count)) for count in (1, 2, 5, 12)]
    for chosen in ([0], [FRAMES - 1], [0, FRAMES - 1], [9, 10, 11], [3, 17, 17, 29, 44], *some):
        clip = read_clip(data, lambda facts, chosen=chosen: chosen)  # type: ignore[misc]
        assert clip.indices == tuple(chosen)
        assert_shows(clip, frames)


@pytest.mark.parametrize("name", clips.CODECS)
def test_facts_and_times_are_those_it_was_made_with(name: str, files: dict[str, Path]) -> None:
    clip = read_clip(str(files[name]), everything)
    assert (clip.facts.frames, clip.facts.width, clip.facts.height) == (FRAMES, *SIZE)
    assert clip.facts.rate == 30.0
    assert clip.facts.seconds == pytest.approx(FRAMES / 30, abs=0.001)  # Matroska counts milliseconds
    assert clip.seconds == pytest.approx([index / 30 for index in range(FRAMES)], abs=0.001)


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_rates_that_a_container_rounds_are_whole_again(container: str) -> None:
    rate = Fraction(24000, 1001)
    assert read_clip(clips.clip(container=container, frames=48, rate=rate), everything).facts.rate == float(rate)


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_frames_of_a_variable_rate_are_shown_at_their_times(container: str) -> None:
    times = [0, 10, 20, 500, 510, 520, 2000, 2010, 2022, 5000, *(6000 + 7 * number for number in range(20))]
    data = clips.clip(container=container, times=times)
    clip = read_clip(data, everything)
    assert clip.seconds == pytest.approx([time / 1000 for time in times], abs=1e-6)
    assert clip.facts.rate == pytest.approx(30 / clip.facts.seconds, rel=0.01)
    assert 6.133 < clip.facts.seconds < 6.2
    assert_shows(clip, clips.decoded(data))


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda frame: frame),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).transpose(1, 0, 2)),
        ((3, 4, -4, 3), lambda frame: np.rot90(frame, -1)),
    ],
)
def test_frames_are_turned_as_the_display_matrix_says(matrix, turned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = clips.with_matrix(clips.clip(frames=12), *matrix)
    clip = read_clip(data, lambda facts: [0, 7])
    frames = [turned(frame) for frame in clips.decoded(data)]
    if 3 not in matrix:
        assert_shows(clip, frames)
        assert (clip.facts.height, clip.facts.width) == frames[0].shape[:2]
    else:  # no quarter turn
        assert (clip.facts.width, clip.facts.height) == SIZE
    is_turn = matrix[0] * matrix[3] - matrix[1] * matrix[2] == 1
    if is_turn:  # OpenCV does not mirror
        path = tmp_path / "turned.mp4"
        path.write_bytes(data)
        assert_shows(clip, by_opencv(path))


@pytest.mark.parametrize(
    ("codec", "container", "pixels", "options"),
    [
        ("libx264", "mp4", "yuv420p", {"x264-params": "interlaced=1:tff=1"}),
        ("mpeg2video", "mpegts", "yuv420p", {"flags": "+ildct+ilme"}),
        ("libx265", "mp4", "yuv420p10le", {}),
        ("libx264", "matroska", "yuv422p10le", {}),
        ("libx264", "mp4", "yuv444p", {}),
        ("libx264", "avi", "yuv420p", {}),
        ("libx264", "mpegts", "yuv420p", {}),
        ("libx264", "flv", "yuv420p", {}),
        ("mjpeg", "avi", "yuvj420p", {}),
        ("mpeg2video", "mpeg", "yuv420p", {}),
        ("ffv1", "matroska", "bgr0", {}),
        ("prores", "mov", "yuv422p10le", {}),
        ("gif", "gif", "rgb8", {}),
    ],
)
def test_frames_of_every_kind_are_read(
    codec: str, container: str, pixels: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Interlaced, of more than 8 bits, of other containers. OpenCV shows only what is neither of the first two."""
    path = tmp_path / "clip"
    path.write_bytes(clips.clip(codec, container, pixels=pixels, options=options))
    clip = read_clip(path, everything)
    assert len(clip.pictures) == 30
    assert_shows(clip, clips.decoded(path.read_bytes()))
    if not options and "10" not in pixels and codec not in ("ffv1", "gif"):
        assert_shows(clip, by_opencv(path))


LUMA_OF_RED = {"": 0.299, "smpte170m": 0.299, "bt709": 0.2126, "bt2020nc": 0.2627}
LUMA_OF_BLUE = {"": 0.114, "smpte170m": 0.114, "bt709": 0.0722, "bt2020nc": 0.0593}


@pytest.mark.parametrize("range", ["tv", "pc"])
@pytest.mark.parametrize("matrix", LUMA_OF_RED)
def test_colours_are_made_with_the_matrix_and_range_of_the_clip(matrix: str, range: str) -> None:
    """By the formula of both; where the clip says neither, as of standard definition."""
    options = {"crf": "1", "color_range": range} | ({"colorspace": matrix} if matrix else {})
    y, u, v = 120, 100, 180
    clip = read_clip(clips.plain((y, u, v), options), lambda facts: [0])
    luma, blue, red = (y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224
    if range == "pc":
        luma, blue, red = float(y), float(u - 128), float(v - 128)
    of_red, of_blue = LUMA_OF_RED[matrix], LUMA_OF_BLUE[matrix]
    r, b = luma + 2 * (1 - of_red) * red, luma + 2 * (1 - of_blue) * blue
    g = (luma - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    assert np.asarray(clip.pictures[0])[9, 9] == pytest.approx([r, g, b], abs=2)


@pytest.mark.parametrize("name", clips.CODECS)
def test_a_clip_may_have_one_frame(name: str) -> None:
    data = clips.clip(*clips.CODECS[name], frames=1)
    clip = read_clip(data, everything)
    assert clip.facts.frames == 1 and clip.facts.rate > 0 and clip.seconds == (0.0,)
    assert np.abs(np.asarray(clip.pictures[0], float) - clips.drawn(0, 96, 64)).mean() < 6


def test_a_clip_that_changes_its_size_is_scaled_to_the_first() -> None:
    first, other = (clips.clip("mpeg2video", "mpegts", 12, size) for size in ((96, 64), (160, 96)))
    clip = read_clip(first + other, everything)
    assert {picture.size for picture in clip.pictures} == {(96, 64)}
    grown = Image.fromarray(clips.drawn(11, 160, 96)).resize((96, 64))
    assert np.abs(np.asarray(clip.pictures[-1], float) - np.asarray(grown, float)).mean() < 30


@pytest.mark.parametrize("chosen", [[], [-1], [30], [3, 2], [0, 99]])
def test_only_frames_that_are_there_can_be_chosen(chosen: list[int]) -> None:
    with pytest.raises(RequestError, match=r"of a clip of 30 frames, \[.*\] cannot be chosen; give ascending indices"):
        read_clip(clips.clip(), lambda facts: chosen)


def test_what_choosing_raises_is_raised() -> None:
    def refuse(facts: ClipFacts) -> Sequence[int]:
        raise ImageError(f"no {facts.frames}")

    with pytest.raises(ImageError, match=r"^no 30$"):
        read_clip(clips.clip(), refuse)
