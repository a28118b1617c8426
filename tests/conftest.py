"""Settings of all tests, and a miniature pair with random weights that most of them share: checkpoints and engines."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from engine.build.builder import build_pair
from engine.config import BuildConfig
from tools.make_random_pair import write_pair

# Deadlines and slow generation time the machine, not the code.
settings.register_profile("engine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("engine")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `small` and `large`."""
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory, seed=5)
    return directory


@pytest.fixture(scope="session")
def engine_directory(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from `pair`. Whoever damages it works on a copy."""
    directory = tmp_path_factory.mktemp("engines") / "pair"
    build_pair(BuildConfig(pair / "small", pair / "large", directory, max_tokens=1024, max_batch=3))
    return directory
