"""A server over the session's random pair."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.runtime.pipeline import SglPipeline
from tests.serve.http_server import HttpServer, running, served
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
