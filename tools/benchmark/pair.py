"""A whole pair as `sgl build` builds it, and a picture to ask about."""

from pathlib import Path

import numpy as np
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig
from tools.benchmark.bench import Bench
from tools.benchmark.sizes import SEED

QUESTION = "What colour is the large circle in the middle of the picture?"


def build_engines(bench: Bench) -> Path:
    """The engine directory of the small and the large model, fp32."""
    small = bench.model("small", bench.size.small)
    large = bench.model("large", bench.size.large)
    out = bench.work / "pair"
    build_pair(BuildConfig(small.directory, large.directory, out, max_tokens=bench.size.max_tokens), bench.on_progress)
    return out


def draw_picture(bench: Bench) -> Path:
    """Noise that is cut into 2 x 3 tiles and a thumbnail."""
    tile = bench.size.small["force_image_size"]
    pixels = np.random.default_rng(SEED).integers(0, 256, (2 * tile, 3 * tile, 3), np.uint8)
    path = bench.work / "picture.png"
    Image.fromarray(pixels).save(path)
    return path
