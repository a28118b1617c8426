"""A random pair built for one, two and four ranks; the large model has biases and an odd vocabulary."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig
from engine.runtime.pipeline import SglPipeline
from tools.make_random_pair import LARGE, SMALL, write_checkpoint, write_tokenizer

LANGUAGE = LARGE["llm_config"] | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "use_sliding_window": False,
    "num_hidden_layers": 4,
    "vocab_size": 517,
}
PRUNE_LAYERS = (1, 2)
Engines = Callable[[int], Path]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    for name, config in (("small", SMALL), ("large", LARGE | {"llm_config": LANGUAGE})):
        write_checkpoint(directory / name, config, seed=11)
        write_tokenizer(directory / name)
    return directory


@pytest.fixture(scope="session")
def config(checkpoints: Path) -> Callable[..., BuildConfig]:
    """What is built of the pair, apart from what a test says."""

    def make(out: Path, **options: object) -> BuildConfig:
        fixed = {"max_tokens": 1024, "max_batch": 3, "prune_layers": PRUNE_LAYERS, "large_scores": True}
        return BuildConfig(checkpoints / "small", checkpoints / "large", out, **fixed | options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def engines(config: Callable[..., BuildConfig], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """World size -> engine directory."""
    root = tmp_path_factory.mktemp("engines")

    @cache
    def build(world_size: int) -> Path:
        out = root / f"tp{world_size}"
        build_pair(config(out, world_size=world_size))
        return out

    return build


@pytest.fixture(scope="session")
def pipelines(engines: Engines) -> Callable[[int], SglPipeline]:
    """World size -> pipeline, ready."""
    return cache(lambda world_size: SglPipeline.load(engines(world_size), threads=1))


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 320, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def drawn(picture: Image.Image, tmp_path: Path) -> Path:
    picture.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
