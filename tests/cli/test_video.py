"""`sgl ask` and `sgl chat` about clips, and the contact sheet of what was kept of one."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.cli.contact_sheet import BAR, CAPTION, Frame, contact_sheet, first_frames, frames_of
from engine.cli.drawing import GAP, OUTLINE, WIDTH
from engine.config import SamplingConfig, VideoConfig
from engine.runtime.pipeline import SglPipeline
from tests.cli.conftest import Run
from tests.clips import clip

Sgl = Callable[..., Run]
QUESTION = "What moves?"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "moving.mp4"
    path.write_bytes(clip(frames=24, rate=12))
    return path


def test_a_clip_is_asked_about(sgl: Sgl, engine_directory: Path, video: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    options = ("--frames", 4, "--no-early-exit", "--max-new-tokens", 4, "--json", "--picture", sheet)
    run = sgl("ask", engine_directory, QUESTION, "--video", video, *options)
    assert (run.status, run.err) == (0, "")
    said = json.loads(run.out)
    [shown] = said["clips"]
    assert shown["frames"] == [2, 8, 14, 19] and shown["seconds"] == pytest.approx([2 / 12, 8 / 12, 14 / 12, 19 / 12])
    assert said["tiles"] == len(shown["kept"]) == 4 and sum(shown["kept"]) == said["num_kept"]
    expected = SglPipeline.load(engine_directory, threads=1).answer(
        [], QUESTION, videos=video, video=VideoConfig(frames=4), sampling=SamplingConfig(max_new_tokens=4)
    )
    assert said["visual_tokens"] == expected.visual_tokens
    with Image.open(sheet) as drawing:
        assert drawing.width == 2 * WIDTH + 3 * GAP


def test_a_clip_and_a_picture(sgl: Sgl, engine_directory: Path, video: Path, picture: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    text = "Is <video> like <image>?"
    asked = ("--video", video, "--image", picture, "--max-frames", 3, "--max-new-tokens", 4, "--picture", sheet)
    run = sgl("ask", engine_directory, text, *asked)
    assert (run.status, run.err) == (0, "")
    with Image.open(sheet) as drawing:
        assert drawing.width == 3 * WIDTH + 4 * GAP


def test_a_quota_for_each_frame(sgl: Sgl, engine_directory: Path, video: Path) -> None:
    options = ("--no-early-exit", "--retention-ratio", 0.5, "--per-frame-quota", "--max-new-tokens", 2, "--json")
    said = json.loads(sgl("ask", engine_directory, QUESTION, "--video", video, *options).out)
    kept = said["clips"][0]["kept"]
    assert len(set(kept)) == 1 and sum(kept) == said["num_kept"]


def test_a_conversation_about_a_clip(
    sgl: Sgl, engine_directory: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What moves?\nWhere to?\n"))
    run = sgl("chat", engine_directory, "--video", video, "--frames", 2, "--max-new-tokens", 4, "--threads", 1)
    assert (run.status, run.err) == (0, "")
    assert len([line for line in run.out.splitlines() if "visual tokens:" in line]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--video", "-", "--image", "-"), "- is given more than once"),
        (("--video", "/nowhere.mp4"), "/nowhere.mp4 does not exist"),
        (("--video", "https://example.com/a.mp4"), "video URLs are not allowed here"),
        (("--video", "VIDEO", "--frames", "0"), "--frames 0 is outside 1"),
        (("--video", "VIDEO", "--frames", "4", "--fps", "1"), "--frames is how many; leave it out, or --fps"),
        (("--video", "VIDEO", "--picture", "VIDEO.png"), "is asked about itself"),
    ],
    ids=str,
)
def test_mistakes_end_in_a_sentence(
    sgl: Sgl, engine_directory: Path, video: Path, options: tuple[str, ...], said: str
) -> None:
    (video.parent / f"{video.name}.png").unlink(missing_ok=True)
    (video.parent / f"{video.name}.png").symlink_to(video)
    run = sgl("ask", engine_directory, QUESTION, *(option.replace("VIDEO", str(video)) for option in options))
    assert run.status == 2
    assert said in run.err and len(run.err.splitlines()) == 1


def grid(columns: int, rows: int) -> np.ndarray:
    row, column = np.indices((rows, columns)).reshape(2, -1)
    return np.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], axis=1)


def test_a_sheet_shows_every_frame_with_its_share() -> None:
    picture = Image.new("RGB", (200, 100), (200, 40, 90))
    shares = [0, 2, 8, 4, 8]
    frames = [Frame(picture, (float(number),), grid(4, 2), np.arange(8) < count) for number, count in enumerate(shares)]
    sheet = np.asarray(contact_sheet(frames))
    wide = (2 * WIDTH + GAP - GAP) // 3
    high = wide // 2 + CAPTION + BAR + GAP // 2
    assert sheet.shape[:2] == (2 * high, 3 * (wide + GAP // 2) - GAP // 2)
    for number, count in enumerate(shares):
        left, top = number % 3 * (wide + GAP // 2), number // 3 * high
        seen = (sheet[top : top + wide // 2, left : left + wide] == (200, 40, 90)).all(axis=-1).mean()
        assert seen == pytest.approx(count / 8, abs=0.03)
        bar = sheet[top + wide // 2 + 2 + BAR // 2, left : left + wide]
        assert (bar == OUTLINE).all(axis=-1).mean() == pytest.approx(count / 8, abs=0.02)
    assert frames[1].caption() == "1.0 s: 2 of 8, 25%"


def test_frames_that_became_tokens_together_are_one() -> None:
    """Of five frames in pairs, the last is its own partner."""
    indices, seconds = (0, 3, 6, 9, 12), (0.0, 0.3, 0.6, 0.9, 1.2)
    assert first_frames(indices, 3) == (0, 6, 12)
    assert first_frames(indices, 5) == indices
    times = np.repeat([[0, 0.4], [0.4, 0.8], [0.8, 1]], 2, axis=0)
    pictures = [Image.new("RGB", (8, 8))] * 3
    found = frames_of(pictures, seconds, times, np.tile(grid(2, 1), (3, 1)), np.array([1, 1, 0, 0, 1, 0], bool))
    assert [frame.seconds for frame in found] == [(0.0, 0.3), (0.6, 0.9), (1.2,)]
    assert [frame.kept.tolist() for frame in found] == [[True, True], [False, False], [True, False]]
    assert found[0].caption() == "0.0–0.3 s: 2 of 2, 100%"
