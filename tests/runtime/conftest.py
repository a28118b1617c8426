"""A built miniature pair with random weights."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig
from engine.runtime.pipeline import SglPipeline
from tools.make_random_pair import write_pair


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    write_pair(directory, seed=5)
    return directory


@pytest.fixture(scope="session")
def pipeline(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("engines") / "pair"
    build_pair(BuildConfig(checkpoints / "small", checkpoints / "large", out, max_tokens=1024, max_batch=3))
    return SglPipeline.load(out, threads=1)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 320, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
