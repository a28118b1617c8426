"""The page of `sgl serve` in a real browser: from the drop of a file to the tokens that are drawn over it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from engine.cli.draw_pruning import covers
from engine.config import ExitConfig, GuidanceConfig, PictureConfig, num_kept
from engine.families import Turn
from engine.runtime.guidance import select
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from tests.pictures import encoded
from tests.serve.watched_page import CONTRASTS, FOCUSABLE, HOLD, NAMELESS, QUESTION, SAMPLING, Picture, Watched
from tools import screenshot_page
from tools.page_browser import PATIENCE, serving
from tools.scenes import make_scene

pytestmark = pytest.mark.xdist_group("browser")
KEY = "a-key-of-the-tests"
OPTIONS = ("--threads", "1", "--model-name", "pair", "--max-new-tokens", str(SAMPLING.max_new_tokens))


@pytest.fixture(scope="module")
def picture(pipeline: SglPipeline) -> Picture:
    data = encoded(make_scene(seed=4, width=330, height=220, objects=5)[0], "PNG")
    answer = pipeline.answer(data, QUESTION, sampling=SAMPLING)
    assert answer.answered_by == "large" and answer.kept is not None and covers(answer.boxes).max() == 1
    return Picture(data, answer)


def test_from_the_drop_of_a_file_to_what_was_kept(watched: Watched, picture: Picture) -> None:
    watched.page.evaluate(
        """() => {
          window.pieces = [];
          const seen = (records) => window.pieces.push(...records.flatMap((one) => [...one.addedNodes]));
          new MutationObserver(seen).observe(document.querySelector("#guided .text"), { childList: true });
        }"""
    )
    watched.drop(picture.data)
    watched.page.locator("canvas").wait_for()
    bare = watched.pixels(0, picture.centres(0))
    watched.ask(QUESTION)
    assert watched.answer() == picture.answer.text
    pieces = watched.page.evaluate("window.pieces.map((node) => node.data).filter(Boolean)")
    assert len(pieces) > 1 and "".join(pieces) == picture.answer.text
    assert "Answered by the large model" in watched.page.locator("#guided .who").inner_text()

    kept = picture.kept(0, picture.answer.kept)
    drawn = watched.pixels(0, picture.centres(0))
    np.testing.assert_allclose(drawn[kept], bare[kept], atol=2)
    dropped = [not one for one in kept]
    assert (drawn[dropped].sum(axis=1) < 0.6 * bare[dropped].sum(axis=1)).all()
    assert np.ptp(drawn[dropped], axis=1).max() <= 3, "what is dropped has no colour"
    thumbnail = picture.kept(1, picture.answer.kept)
    assert (watched.pixels(1, picture.centres(1)).max(axis=1) < 110).tolist() == [not one for one in thumbnail]
    for cover, name in enumerate(("tiles", "thumbnail")):
        count = picture.kept(cover, picture.answer.kept)
        assert watched.page.get_by_text(f"{name}: {sum(count)} of {len(count)} tokens kept").is_visible()


def test_retention_draws_again_and_goes_with_the_next_question(
    watched: Watched, picture: Picture, pipeline: SglPipeline
) -> None:
    watched.drop(picture.data)
    watched.page.locator("canvas").wait_for()
    bare = watched.pixels(0, picture.centres(0))
    watched.ask(QUESTION)
    watched.answer()
    answer = picture.answer
    assert answer.guidance is not None and answer.importance is not None
    value = watched.page.locator("#retention-value")
    assert value.inner_text() == f"20 %, {answer.num_kept()} of {answer.visual_tokens} tokens"
    for ratio in (0.5, 0.01, 1, answer.guidance.retention_ratio):
        watched.page.get_by_label("Retention").fill(str(ratio))
        count = num_kept(answer.visual_tokens, ratio)
        assert value.inner_text() == f"{round(100 * ratio)} %, {count} of {answer.visual_tokens} tokens"
        lit = np.abs(watched.pixels(0, picture.centres(0)) - bare).max(axis=1) <= 2
        assert lit.tolist() == picture.kept(0, select(answer.importance, count))
    watched.page.get_by_label("Retention").fill("0.5")
    with watched.page.expect_request("**/completions") as sent:
        watched.ask(QUESTION)
    assert sent.value.post_data_json["sgl"]["retention_ratio"] == 0.5
    half = pipeline.answer(picture.data, QUESTION, guidance=GuidanceConfig(retention_ratio=0.5), sampling=SAMPLING)
    assert watched.answer() == half.text
    assert f"from {half.num_kept()} of" in watched.page.locator("#guided .who").inner_text()


def test_the_threshold_says_what_would_have_been(watched: Watched, picture: Picture, pipeline: SglPipeline) -> None:
    watched.drop(picture.data, kind="paste")
    watched.ask(QUESTION)  # while the picture is read
    watched.answer()
    verdict = watched.page.locator(".verdict")
    assert verdict.inner_text() == "Not sure: the large model answers."
    score = watched.page.locator(".score")
    assert picture.answer.decision is not None
    assert score.get_attribute("aria-label") == f"decision score {picture.answer.decision.value:.3f}, threshold 0.9"
    watched.page.get_by_label("Exit threshold").fill("0")
    assert "the small model's answer would have been returned" in verdict.inner_text()
    assert score.locator(".mark").bounding_box()["x"] <= score.bounding_box()["x"]
    watched.ask(QUESTION)
    small = pipeline.answer(picture.data, QUESTION, exit=ExitConfig(exit_threshold=0), sampling=SAMPLING)
    assert (watched.answer(), small.answered_by) == (small.text, "small")
    assert verdict.inner_text() == "The small model is sure: its answer is the answer."
    assert "would have kept" in watched.page.locator("#kept-note").inner_text()
    watched.page.get_by_label("Exit threshold").fill("1")
    assert verdict.inner_text() == "At this threshold the large model would have answered."


def test_the_large_model_alone_beside_it(watched: Watched, picture: Picture, pipeline: SglPipeline) -> None:
    watched.drop(picture.data)
    watched.page.locator("canvas").wait_for()
    assert watched.page.get_by_role("button", name="Compare").is_disabled()
    watched.ask(QUESTION)
    watched.answer()
    watched.page.get_by_role("button", name="Compare").click()
    off = {"guidance": GuidanceConfig(enabled=False), "exit": ExitConfig(enabled=False)}
    alone = pipeline.answer(picture.data, QUESTION, sampling=SAMPLING, **off)
    assert watched.answer("alone") == alone.text
    stages = watched.page.locator("#alone th").all_inner_texts()
    assert stages == ["large vision", "large prefill", "large decode", "together"]
    saved = watched.page.locator("#saved").inner_text()
    percent = f"{100 - 100 * picture.answer.average_retention():.1f}".removesuffix(".0")
    assert f"over all layers {percent} % saved" in saved
    assert " ms against " in saved
    assert ("Both answers are the same." in saved) == (alone.text == picture.answer.text)


def test_following_up(watched: Watched, picture: Picture, pipeline: SglPipeline) -> None:
    watched.drop(picture.data)
    watched.drop(picture.data, name="again.png")
    watched.page.locator("canvas").nth(1).wait_for()
    watched.page.get_by_role("button", name="Remove again.png").click()
    assert watched.page.locator("canvas").count() == 1
    watched.ask(QUESTION)
    watched.answer()
    watched.page.get_by_label("Follow up").check()
    watched.ask("And now?")
    history = (Turn(QUESTION, picture.answer.text.strip()),)
    followed = pipeline.answer(picture.data, "And now?", sampling=SAMPLING, history=history)
    assert watched.answer() == followed.text
    assert watched.page.locator("#turns li").text_content() == f"{QUESTION}\n{picture.answer.text}"


def test_several_pictures_as_a_browser_shows_them(watched: Watched, pipeline: SglPipeline) -> None:
    """One is turned by its EXIF orientation, one is seen through."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = encoded(make_scene(seed=5, width=330, height=110, objects=3)[0], "JPEG", exif=exif)
    pictures = [turned, encoded(Image.new("RGBA", (112, 112), (200, 0, 0, 0)), "PNG")]
    for data, type in zip(pictures, ("image/jpeg", "image/png"), strict=True):
        watched.drop(data, type=type)
    watched.page.locator("canvas").nth(1).wait_for()
    high = watched.page.locator("canvas").first.bounding_box()
    assert high["height"] > 2 * high["width"]
    assert watched.pixels(1, [[0.5, 0.5]]).tolist() == [[255, 255, 255]]
    watched.ask(QUESTION)
    seen = Question(
        tuple(pictures), QUESTION, sampling=SAMPLING, picture=PictureConfig(auto_orient=True, background=(255,) * 3)
    )
    answer = pipeline.answer_batch([seen])[0]
    assert watched.answer() == answer.text and answer.kept is not None
    for index, figure in enumerate(watched.page.locator("figure").all()):
        counts = [caption.split(": ")[-1].split(" ") for caption in figure.locator(".note").all_inner_texts()]
        assert sum(int(count[0]) for count in counts) == (answer.images[answer.kept] == index).sum()
        assert sum(int(count[2]) for count in counts) == (answer.images == index).sum()


def test_stopping(watched: Watched, picture: Picture) -> None:
    watched.page.evaluate(HOLD)
    watched.ask(QUESTION)
    watched.page.get_by_text("Asking both models").wait_for()
    watched.page.get_by_role("button", name="Stop").click()
    watched.page.get_by_text("Stopped.").wait_for()
    assert watched.page.get_by_role("button", name="Ask", exact=True).is_enabled()
    assert watched.page.get_by_role("button", name="Compare").is_disabled()
    assert watched.page.get_by_role("alert").is_hidden()


def test_errors_are_the_servers_sentence(watched: Watched) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    watched.drop(b"no picture at all", name)
    watched.page.get_by_text(name).wait_for()
    with watched.page.expect_response("**/completions") as got:
        watched.ask("<b>What?</b>")
    alert = watched.page.get_by_role("alert")
    alert.wait_for()
    last = json.loads(got.value.text().strip().rpartition("data: ")[2])
    assert alert.inner_text() == last["error"]["message"]
    assert watched.page.locator("img, main b").count() == 0
    watched.drop(b"text", "notes.txt", "text/plain")
    watched.page.get_by_text("notes.txt is no picture and no clip; choose another").wait_for()
    watched.page.route("**/completions", lambda route: route.abort())
    watched.ask(QUESTION)
    watched.page.get_by_text("the server does not answer").wait_for()
    assert all("Failed to load resource" in error for error in watched.errors)
    watched.errors.clear()


def test_a_server_with_a_key_asks_for_it(opened: Any, engine_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    with serving(engine_directory, *OPTIONS, "--api-key-file", str(file)) as address, opened.new_page() as page:
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        field, refused = page.get_by_label("API key"), page.get_by_text("the API key is missing or wrong")
        refused.wait_for()
        for key, outcome in (("another key", refused), (KEY, page.get_by_text("pair", exact=True))):
            field.fill(key)
            page.get_by_role("button", name="Use this key").click()
            outcome.wait_for()
        assert field.is_hidden() and refused.is_hidden()
        watched = Watched(page)
        watched.ask(QUESTION)
        assert watched.answer()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_and_reach_it(watched: Watched, picture: Picture, scheme: str) -> None:
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    watched.drop(picture.data)
    page.locator("canvas").wait_for()
    page.get_by_label("Question", exact=True).last.focus()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    watched.answer()
    page.get_by_role("button", name="Compare").press("Enter")
    watched.answer("alone")
    page.get_by_label("Exit threshold").press("ArrowLeft")
    assert page.locator("#threshold-value").inner_text() == "0.89"

    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) > 128) == (scheme == "light")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    assert [(html, round(contrast, 2)) for html, contrast in contrasts if contrast < 4.5] == []
    assert page.evaluate(NAMELESS) == []
    assert page.locator("#guided .text").get_attribute("aria-live") == "polite"
    wanted = page.evaluate(FOCUSABLE)
    page.locator(f"#{wanted[0]}").focus()
    for name in wanted[1:]:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id || document.activeElement.ariaLabel") == name


def test_the_picture_of_the_page(opened: Any, address: str) -> None:
    taken = screenshot_page.screenshot(opened, address)
    assert taken.width == screenshot_page.WIDTH and taken.height >= screenshot_page.HEIGHT
