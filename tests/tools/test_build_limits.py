"""The build's command line refuses limits that nothing could hold, or no question use."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.conftest import Run
from tests.tools.test_build_engines import options
from tests.tools.test_user_errors import fails


def test_a_maximum_that_holds_no_picture_is_refused(sgl: Callable[..., Run], pair: Path, tmp_path: Path) -> None:
    run = sgl("build", *options(pair, tmp_path / "engine", "--max-tokens", 16), "--json")
    fails(run, "max_tokens 16 has no room for a question beside the 16 visual tokens", pair / "small", "give more")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        (
            ("--max-batch", 100_000, "--max-tokens", 1000),
            ("max_batch 100000 and max_tokens 1000 need {} GB of KV caches in the small model", "give less of either"),
        ),
        (("--max-tokens", 10**12), ("max_tokens 1000000000000 need",)),
        (
            ("--max-tiles", 1000, "--max-tokens", 1000),
            (
                "a picture of max_tiles 1000 has 16016 visual tokens",
                "max_tokens 1000 has no room",
                "fewer tiles or more",
            ),
        ),
    ],
)
def test_sizes_that_nothing_could_hold_are_refused(
    sgl: Callable[..., Run], pair: Path, tmp_path: Path, limits: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    small = json.loads((pair / "small" / "config.json").read_text())["llm_config"]
    head = small["hidden_size"] // small["num_attention_heads"]
    size = 2 * small["num_hidden_layers"] * small["num_key_value_heads"] * head * 100_000 * 1000 * 4
    run = sgl("build", *options(pair, tmp_path / "engine", *limits), "--json")
    fails(run, pair / "small", *(part.format(f"{size / 1e9:,.0f}") for part in parts))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", [10, 99])
def test_a_prune_layer_outside_the_model(sgl: Callable[..., Run], pair: Path, tmp_path: Path, layer: int) -> None:
    out = tmp_path / "engine"
    fails(sgl("build", *options(pair, out, "--prune-layers", f"2,{layer}"), "--json"), layer, "0..9", "large")
    assert not out.exists()
