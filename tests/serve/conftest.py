"""A server over the session's random pair, and its page in a browser."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.runtime.pipeline import SglPipeline
from tests.serve.http_server import HttpServer, running, served
from tests.serve.watched_page import SAMPLING, Watched, watch
from tools.page_browser import browser
from tools.scenes import make_scene


@pytest.fixture(scope="session")
def pipeline(engine_directory: Path) -> Iterator[SglPipeline]:
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def server(pipeline: SglPipeline) -> Iterator[HttpServer]:
    with running(served(pipeline)) as server:
        yield server


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """PNGs of different sizes."""
    encoded = []
    for seed, (width, height) in enumerate([(330, 220), (100, 300)]):
        file = io.BytesIO()
        make_scene(seed=seed, width=width, height=height, objects=3)[0].save(file, "png")
        encoded.append(file.getvalue())
    return encoded


@pytest.fixture(scope="session")
def urls(pictures: list[bytes]) -> list[str]:
    return [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    """A browser."""
    try:
        with browser() as started:
            yield started
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def address(opened: Any, pipeline: SglPipeline) -> Iterator[str]:
    """Of a server whose answers are short."""
    pair = served(pipeline)
    short = replace(pair.limits.default, sampling=SAMPLING)
    with running(replace(pair, limits=replace(pair.limits, default=short))) as server:
        yield server.url


@pytest.fixture
def watched(opened: Any, address: str) -> Iterator[Watched]:
    with watch(opened, address) as page:
        yield page
