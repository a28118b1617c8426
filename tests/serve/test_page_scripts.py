"""What the page of `sgl serve` works out by itself, in a browser without a server."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import engine.serve.http
from engine.cli.contact_sheet import frames_of
from engine.cli.draw_pruning import covers
from engine.config import num_kept
from engine.errors import EngineError
from engine.runtime.guidance import select
from tools.page_browser import PATIENCE, browser

pytestmark = pytest.mark.xdist_group("browser")
PAGE = Path(engine.serve.http.__file__).parent / "page"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """An empty one beside the scripts."""
    try:
        with browser() as opened, opened.new_page() as page:
            page.set_default_timeout(PATIENCE)
            page.route("**/*.js", lambda route: route.fulfill(path=PAGE / route.request.url.rpartition("/")[2]))
            page.route("**/empty", lambda route: route.fulfill(body="<p></p>", content_type="text/html"))
            page.goto("http://page/empty")
            yield page
    except EngineError as error:
        pytest.skip(str(error))


def call(page: Any, script: str, function: str, *arguments: object) -> Any:
    return call_each(page, script, function, [arguments])[0]


def call_each(page: Any, script: str, function: str, arguments: Sequence[Sequence[object]]) -> list[Any]:
    """A set comes back as a list."""
    plain = "(found) => (found instanceof Set ? [...found] : found)"
    called = f"all.map((given) => script.{function}(...given)).map({plain})"
    return page.evaluate(f"(all) => import('/{script}.js').then((script) => {called})", list(map(list, arguments)))


def test_as_many_are_kept_as_the_engine_keeps(page: Any) -> None:
    asked = [(tokens, step / 100) for tokens in (0, 1, 7, 100, 144, 3328) for step in range(1, 101)]
    assert call_each(page, "overlay", "numKept", asked) == [num_kept(tokens, ratio) for tokens, ratio in asked]


def test_the_most_important_are_those_of_the_engine(page: Any) -> None:
    importance = np.random.default_rng(3).integers(0, 40, 300).astype(np.float32)
    for count in (0, 1, 17, 150, 300):
        found = call(page, "overlay", "mostImportant", importance.tolist(), count)
        assert sorted(found) == select(importance, count).tolist()


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 1), (2, 3), (7, 1), (1, 11), (4, 3)])
@pytest.mark.parametrize("side", [1, 3, 7, 16])
def test_what_covers_a_picture_again_is_found(page: Any, columns: int, rows: int, side: int) -> None:
    """As it is sent, rounded."""
    grids = [
        ((column + np.arange(side) / side) / columns, (row + np.arange(side) / side) / rows, columns, rows)
        for row in range(rows)
        for column in range(columns)
    ]
    grids.append((np.arange(side) / side, np.arange(side) / side, 1, 1))
    boxes = np.array(
        [[x, y, x + 1 / side / c, y + 1 / side / r] for lefts, tops, c, r in grids for y in tops for x in lefts]
    )
    expected = [0] * (columns * rows * side**2) + [1] * side**2
    assert covers(boxes).tolist() == expected
    assert call(page, "overlay", "covers", boxes.round(5).tolist()) == expected


def test_tokens_beside_a_picture_cover_nothing_of_it(page: Any) -> None:
    boxes = np.array([[0, 0, 1, 1], [-0.5, 0, 0.25, 1], [0.25, 0, 1, 1], [1, 0, 1.5, 1]])
    assert call(page, "overlay", "covers", boxes.tolist()) == covers(boxes).tolist()


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (4, 4), (4, 2), (5, 3), (768, 384)])
def test_frames_that_became_tokens_together(page: Any, frames: int, groups: int) -> None:
    """The last group may have fewer; tokens come in any order."""
    seconds = [frame / 2 for frame in range(frames)]
    pictures = [Image.new("RGB", (1, 1))] * groups
    times = np.array([[index / groups, (index + 1) / groups] for index in range(groups)])
    of_tokens = np.random.default_rng(groups).permutation(np.repeat(np.arange(groups), 3))
    kept = np.arange(len(of_tokens)) % 2 == 0
    boxes = np.zeros((len(of_tokens), 4))
    expected = frames_of(pictures, seconds, times[of_tokens], boxes, kept)
    read = "([seconds, times]) => import('/sheet.js').then((script) => script.readGroups(clip, seconds, times))"
    page.evaluate("window.clip = { framesAt: async (seconds) => seconds }")
    found = page.evaluate(read, [seconds, times[of_tokens].tolist()])
    assert [tuple(group) for group in found["seconds"]] == [frame.seconds for frame in expected]
    assert found["frames"] == [seconds[start] for start in range(0, frames, -(-frames // groups))]
    tokens = {"boxes": boxes.tolist(), "times": times[of_tokens].tolist(), "kept": kept.tolist()}
    by_frame = call(page, "sheet", "byFrame", tokens)
    assert [group["kept"] for group in by_frame] == [frame.kept.tolist() for frame in expected]


@pytest.mark.parametrize(
    ("decision", "exits"),
    [
        ({"criterion": "decision_score", "confidence": 0.4, "consistency": 0.8, "value": 0.6}, [True, True, False]),
        ({"criterion": "decision_score", "confidence": 0.4, "value": 0.7}, [True, None, False]),
        ({"criterion": "confidence", "confidence": 0.65, "value": 0.65}, [True, True, False]),
        ({"criterion": "consistency", "confidence": 0.65, "value": 1}, [None, None, None]),
    ],
)
def test_what_was_not_computed_is_not_known(page: Any, decision: dict[str, Any], exits: list[Any]) -> None:
    asked = [(decision, threshold) for threshold in (0.2, 0.6, 0.71)]
    assert call_each(page, "report", "wouldExit", asked) == exits


LARGE = {"answered_by": "large", "visual_tokens": 144, "visual_tokens_kept": 144, "average_retention": 1}
ALONE = {"large vision": 0.02, "large prefill": 0.28}


@pytest.mark.parametrize(
    ("report", "seconds", "tokens", "time"),
    [
        (
            {"visual_tokens_kept": 14, "prune_layer": 2, "average_retention": 0.172},
            {"small vision": 0.03, "large vision": 0.1, "large prefill": 0.05},
            "14 of 144 from layer 2 on, over all layers 82.8 % saved",
            "180 ms against 380 ms, 52.6 % saved",
        ),
        (
            {"visual_tokens_kept": 14, "prune_layer": 2, "average_retention": 0.172},
            {"small vision": 0.31, "large vision": 0.01, "large prefill": 0.06},
            "14 of 144 from layer 2 on, over all layers 82.8 % saved",
            "390 ms against 300 ms, 30 % more",
        ),
        ({}, {"large vision": 0.02, "large prefill": 0.28}, "144 of 144, none saved", "0 % saved"),
        (
            {"answered_by": "small", "visual_tokens": 90},
            {"small vision": 0.03},
            "the large model needed none of 144, 100 % saved",
            "30 ms against 300 ms, 90 % saved",
        ),
    ],
)
def test_what_was_saved(page: Any, report: dict[str, Any], seconds: dict[str, float], tokens: str, time: str) -> None:
    """The second run finds the features of the pictures ready, and both count them alike."""
    show = "(given) => import('/report.js').then((script) => script.showSaved(document.body, ...given, true))"
    page.evaluate(show, [LARGE | report | {"seconds": seconds}, LARGE | {"seconds": ALONE}])
    said = page.locator("body").inner_text()
    assert f"Visual tokens: {tokens}." in said
    assert f"{time}." in said
