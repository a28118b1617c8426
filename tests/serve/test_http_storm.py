"""Many clients at once, most of which do not behave; `python -m tools.http_storm` asks more."""

import asyncio
from pathlib import Path

from engine.runtime.pipeline import SglPipeline
from tests.serve.http_server import MODEL, running, served
from tools.http_storm import Client, Storm


def test_a_storm(engine_directory: Path) -> None:
    with (
        SglPipeline.load(engine_directory, threads=1) as pipeline,
        running(served(pipeline)) as server,
    ):
        outcomes = asyncio.run(Storm(server.url, MODEL, max_tokens=4).run(120, seed=1))
        assert outcomes.total() == 120 and outcomes.keys() == set(Client)
        server.await_metric("running", 0)
        server.await_metric("waiting", 0)
        assert server.desk.in_flight.requests == 0
