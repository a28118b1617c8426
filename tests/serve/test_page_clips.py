"""Clips on the page of `sgl serve`, in a real browser: from the drop of a file to the contact sheet."""

from typing import Any

import numpy as np
import pytest

from engine.config import GuidanceConfig, num_kept
from engine.runtime.answer import Answer
from engine.runtime.guidance import select
from engine.runtime.pipeline import SglPipeline
from tests.clips import CODECS, clip, decoded
from tests.serve.watched_page import QUESTION, SAMPLING, Watched

pytestmark = pytest.mark.xdist_group("browser")
GRID = [[x / 8, y / 8] for y in range(1, 8) for x in range(1, 8)]
TYPES = {"webm": "video/webm", "mp4": "video/mp4", "matroska": "video/x-matroska"}


def asked(pipeline: SglPipeline, data: bytes, **options: Any) -> Answer:
    return pipeline.answer([], QUESTION, videos=data, sampling=SAMPLING, **options)


def captions(answer: Answer, kept: np.ndarray, number: int = 0) -> list[str]:
    """Of the frames of a clip, each of which has its own tokens. kept: which tokens are."""
    seconds = answer.clips[number].seconds
    mine = np.flatnonzero(answer.images == answer.images.max() + 1 - len(answer.clips) + number).reshape(
        len(seconds), -1
    )
    return [
        f"{at:.1f} s: {np.isin(tokens, kept).sum()} of {len(tokens)} tokens kept"
        for at, tokens in zip(seconds, mine, strict=True)
    ]


def frames_shown(watched: Watched, data: bytes, answer: Answer) -> list[int]:
    """The frame of the clip that each frame of the sheet is most like, all tokens being kept."""
    rows = [[int(y * 64), int(x * 96)] for x, y in GRID]
    frames = np.stack([[frame[y, x] for y, x in rows] for frame in decoded(data)]).astype(float)
    drawn = [watched.pixels(cell, GRID) for cell in range(len(answer.clips[0].indices))]
    return [int(np.abs(frames - one).mean(axis=(1, 2)).argmin()) for one in drawn]


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


def centres_of(answer: Answer) -> list[list[list[float]]]:
    """Of the tokens of each frame."""
    boxes = answer.boxes.reshape(len(answer.clips[0].indices), -1, 4).astype(float)
    return np.stack([boxes[..., 0::2].mean(axis=-1), boxes[..., 1::2].mean(axis=-1)], axis=-1).tolist()
