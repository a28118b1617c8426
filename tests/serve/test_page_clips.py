"""Clips on the page of `sgl serve`, in a real browser: from the drop of a file to the contact sheet."""

from typing import Any

import numpy as np
import pytest

from engine.config import GuidanceConfig, PictureConfig, num_kept
from engine.runtime.answer import Answer
from engine.runtime.guidance import select
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from tests.clips import CODECS, clip, decoded
from tests.pictures import encoded
from tests.serve.watched_page import CONTRASTS, NAMELESS, QUESTION, SAMPLING, Watched
from tools.scenes import make_scene

pytestmark = pytest.mark.xdist_group("browser")
GRID = [[x / 8, y / 8] for y in range(1, 8) for x in range(1, 8)]
SIZE = (96, 64)
TYPES = {"webm": "video/webm", "mp4": "video/mp4"}


def asked(pipeline: SglPipeline, data: bytes, **options: Any) -> Answer:
    return pipeline.answer([], QUESTION, videos=data, sampling=SAMPLING, **options)


def captions(answer: Answer, kept: np.ndarray) -> list[str]:
    """Of the frames of the last clip, each of which has its own tokens. kept: which of all tokens are."""
    seconds = answer.clips[-1].seconds
    tokens = np.flatnonzero(answer.images == answer.images.max()).reshape(len(seconds), -1)
    return [
        f"{at:.1f} s: {np.isin(mine, kept).sum()} of {len(mine)} tokens kept"
        for at, mine in zip(seconds, tokens, strict=True)
    ]


def frames_shown(watched: Watched, data: bytes, answer: Answer) -> list[int]:
    """The frame of the clip that each frame of the sheet is most like, all tokens being kept."""
    places = [(int(y * SIZE[1]), int(x * SIZE[0])) for x, y in GRID]
    frames = np.array([[frame[place] for place in places] for frame in decoded(data)], float)
    drawn = [watched.pixels(cell, GRID) for cell in range(len(answer.clips[0].indices))]
    return [int(np.abs(frames - one).mean(axis=(1, 2)).argmin()) for one in drawn]


def centres_of(answer: Answer) -> list[list[list[float]]]:
    """Of the tokens of each frame."""
    boxes = answer.boxes.reshape(len(answer.clips[0].indices), -1, 4).astype(float)
    return np.stack([boxes[..., 0::2].mean(axis=-1), boxes[..., 1::2].mean(axis=-1)], axis=-1).tolist()


@pytest.mark.parametrize(("codec", "kind"), [("VP9", "drop"), ("H.264", "paste"), ("VP8", "choose")])
def test_from_a_file_to_the_contact_sheet(watched: Watched, pipeline: SglPipeline, codec: str, kind: str) -> None:
    encoder, container = CODECS[codec]
    data = clip(encoder, container)
    name, type = f"walk.{container}", TYPES[container]
    if kind == "choose":
        watched.page.get_by_label("Choose").set_input_files({"name": name, "mimeType": type, "buffer": data})
    else:
        watched.drop(data, name, type, kind)
    watched.ask(QUESTION)  # while the clip is read
    answer = asked(pipeline, data)
    assert watched.answer() == answer.text
    sheet = watched.page.get_by_role("list", name=f"Frames of {name}")
    sheet.wait_for()
    assert answer.kept is not None and answer.importance is not None
    assert sheet.locator("p").all_inner_texts() == captions(answer, answer.kept)

    watched.page.get_by_label("Retention").fill("1")
    bare = [watched.pixels(cell, centres) for cell, centres in enumerate(centres_of(answer))]
    assert frames_shown(watched, data, answer) == list(answer.clips[0].indices)
    watched.page.get_by_label("Retention").fill("0.3")
    kept = select(answer.importance, num_kept(answer.visual_tokens, 0.3))
    assert sheet.locator("p").all_inner_texts() == captions(answer, kept)
    for cell, centres in enumerate(centres_of(answer)):
        lit = np.abs(watched.pixels(cell, centres) - bare[cell]).max(axis=1) <= 2
        assert lit.tolist() == np.isin(np.arange(len(lit)) + cell * len(lit), kept).tolist()
    with watched.page.expect_request("**/completions") as sent:
        watched.ask(QUESTION)
    assert sent.value.post_data_json["sgl"]["retention_ratio"] == 0.3
    assert watched.answer() == asked(pipeline, data, guidance=GuidanceConfig(retention_ratio=0.3)).text


@pytest.mark.parametrize("container", ["webm", "mp4"])
def test_a_clip_whose_clock_does_not_begin_at_0(watched: Watched, pipeline: SglPipeline, container: str) -> None:
    encoder = {"webm": "libvpx", "mp4": "libx264"}[container]
    data = clip(encoder, container, times=[5000 + 40 * number for number in range(30)])
    watched.drop(data, f"late.{container}", TYPES[container])
    watched.page.get_by_label("Retention").fill("1")
    watched.ask(QUESTION)
    watched.page.locator(".sheet").wait_for()
    assert frames_shown(watched, data, asked(pipeline, data)) == list(asked(pipeline, data).clips[0].indices)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_clip_beside_a_picture(watched: Watched, pipeline: SglPipeline, scheme: str) -> None:
    """Pictures come first, whatever came first; everything can be read and reached."""
    page, data = watched.page, clip()
    page.emulate_media(color_scheme=scheme)
    png = encoded(make_scene(seed=4, width=112, height=112, objects=3)[0], "PNG")
    watched.drop(data, "walk.mp4", "video/mp4")
    watched.drop(data, "again.mp4", "video/mp4")
    watched.drop(png)
    page.get_by_role("button", name="Remove again.mp4").press("Enter")
    assert page.locator("figcaption span").all_inner_texts() == ["scene.png", "walk.mp4"]
    assert page.locator("canvas").count() == 2
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.keyboard.press("Enter")
    answer = pipeline.answer_batch(
        [
            Question(
                (png,),
                QUESTION,
                sampling=SAMPLING,
                videos=(data,),
                picture=PictureConfig(auto_orient=True, background=(255,) * 3),
            )
        ]
    )[0]
    assert watched.answer() == answer.text and answer.kept is not None
    page.locator(".sheet").wait_for()
    assert page.locator(".sheet p").all_inner_texts() == captions(answer, answer.kept)
    (caption,) = page.locator(".panel p").all_inner_texts()
    tokens = np.flatnonzero(answer.images == 0)
    assert caption == f"{np.isin(tokens, answer.kept).sum()} of {len(tokens)} tokens kept"
    page.get_by_role("button", name="Compare").press("Enter")
    assert watched.answer("alone")
    assert [round(contrast, 2) for _, contrast in page.evaluate(CONTRASTS) if contrast < 4.5] == []
    assert page.evaluate(NAMELESS) == []
    first = page.locator(".sheet canvas").first.get_attribute("aria-label")
    assert first == f"walk.mp4 at {captions(answer, answer.kept)[0]}"


def test_what_the_browser_cannot_show(watched: Watched, pipeline: SglPipeline) -> None:
    """Is answered all the same, and the shares of frames are said."""
    data = clip("mpeg2video", "mpegts")
    watched.drop(data, "old.mpeg", "")
    watched.page.get_by_text("This browser cannot show the clip.").wait_for()
    watched.ask(QUESTION)
    answer = asked(pipeline, data)
    assert watched.answer() == answer.text and answer.kept is not None
    watched.page.locator(".sheet").wait_for()
    assert watched.page.locator(".sheet p").all_inner_texts() == captions(answer, answer.kept)
    assert watched.page.locator("canvas").count() == 0


def test_a_clip_that_no_model_can_read(watched: Watched) -> None:
    watched.drop(b"no clip at all", "walk.webm", "video/webm")
    watched.ask(QUESTION)
    watched.page.get_by_text("the clip is not a clip").wait_for()
    watched.errors.clear()
