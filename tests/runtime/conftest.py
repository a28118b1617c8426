"""The miniature pair, loaded."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.runtime.pipeline import SglPipeline


@pytest.fixture(scope="session")
def pipeline(engine_directory: Path) -> SglPipeline:
    return SglPipeline.load(engine_directory, threads=1)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 320, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
