"""What the server's environment refuses to start; tests/serving starts it."""

from pathlib import Path

import pytest

from tools.triton.server_environment import Environment, ServerError


@pytest.mark.parametrize("spaced", ["repository", "backends"])
def test_paths_that_the_server_would_split_are_refused(tmp_path: Path, spaced: str) -> None:
    """Before anything is written: the server itself does not say why such a model does not start."""
    places = {name: tmp_path / name for name in ("repository", "backends")}
    places[spaced] = tmp_path / f"the {spaced}"
    environment = Environment(Path("python"), tmp_path, "3.11", "lib")
    with pytest.raises(ServerError, match=rf"cannot start from .*/the {spaced}: a path with spaces is split; choose"):
        environment.command(**places)
    assert not list(tmp_path.iterdir())
