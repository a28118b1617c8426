"""Many questions at once on a busy machine, some cancelled and some malformed; `tools/triton/storm.py` asks more."""

from pathlib import Path

import pytest

from engine.runtime.pipeline import SglPipeline
from tools.triton.server_environment import UnsuitableMachine
from tools.triton.storm import check, draw, make_cases, storm

pytestmark = pytest.mark.xdist_group("server")
QUESTIONS, PARALLEL, BUSY = 150, 100, 2


def test_a_storm(engine_directory: Path, pipeline: SglPipeline, tmp_path: Path) -> None:
    storms = [draw(list(make_cases(pipeline)), QUESTIONS, seed=1)]
    try:
        (report,) = storm(engine_directory, tmp_path, storms, PARALLEL, BUSY)
    except UnsuitableMachine as error:
        pytest.skip(str(error))
    check(report)
