"""What a wheel holds is what the server needs."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from engine.cli.export import write_repository
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.serve_config import ServeConfig
from tests.serving.conftest import data_url, serve
from tests.wheel import build_wheel
from tools.triton.server_environment import UnsuitableMachine, install

pytestmark = pytest.mark.xdist_group("server")


def test_a_wheel_serves(engine_directory: Path, pipeline: SglPipeline, picture: bytes, tmp_path: Path) -> None:
    product = tmp_path / "product"
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        wheel.extractall(product)
    write_repository(engine_directory, tmp_path / "repository", ServeConfig(threads=1))
    try:
        environment = install()
    except UnsuitableMachine as error:
        pytest.skip(str(error))
    variables = environment.variables() | {"PYTHONPATH": str(product)}
    where = ["python", "-c", "import engine; print(engine.__file__)"]
    found = subprocess.run(where, env=variables, cwd=os.sep, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(product)
    with serve(tmp_path / "repository", tmp_path, PYTHONPATH=str(product)) as server:
        expected = pipeline.answer(picture, "What is it?")
        said = server.generate(text_input="What is it?", image_url_input=[data_url(picture)])
        assert (said["text_output"], said["answered_by"]) == (expected.text, expected.answered_by)
