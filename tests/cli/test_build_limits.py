"""The build's command line refuses limits that nothing could hold, or no question use."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.engine_directory import read_manifest
from tests.cli.conftest import Run
from tests.cli.test_build_engines import options
from tests.cli.test_user_errors import fails


def test_a_maximum_that_holds_no_picture_is_refused(sgl: Callable[..., Run], pair: Path, tmp_path: Path) -> None:
    run = sgl("build", *options(pair, tmp_path / "engine", "--max-tokens", 16), "--json")
    fails(run, "--max-tokens 16 has no room for a question beside the 16 visual tokens", pair / "small", "give more")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        (
            ("--max-batch", 100_000, "--max-tokens", 1000),
            (
                "--max-batch 100000 and --max-tokens 1000 need {} GB of KV caches in the small model",
                "give less of either",
            ),
        ),
        (
            ("--max-tiles", 200, "--max-tokens", 1000),
            (
                "a picture of --max-tiles 200 has 3216 visual tokens",
                "--max-tokens 1000 has no room",
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


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--max-tokens", 10**12, "--max-tokens 1000000000000 is outside 1..16777216; choose another"),
        ("--max-batch", 10**12, "--max-batch 1000000000000 is outside 1..1048576; choose another"),
        ("--max-tiles", 257, "--max-tiles 257 is outside 1..256; choose another"),
        ("--tp", 10**9, "--tp 1000000000 is outside 1..1024; choose another"),
    ],
)
def test_limits_that_no_engine_has_are_refused(
    sgl: Callable[..., Run], pair: Path, tmp_path: Path, option: str, value: int, sentence: str
) -> None:
    fails(sgl("build", *options(pair, tmp_path / "engine", option, value), "--json"), sentence)
    assert list(tmp_path.iterdir()) == []


def positions(pair: Path, tmp_path: Path, **of: int) -> Path:
    """A copy of the pair whose models were published for so many positions."""
    copy = Path(shutil.copytree(pair, tmp_path / "pair"))
    for name, number in of.items():
        path = copy / name / "config.json"
        content = json.loads(path.read_text())
        content["llm_config"]["max_position_embeddings"] = number
        path.write_text(json.dumps(content))
    return copy


def test_the_default_length_is_what_the_models_were_published_for(
    sgl: Callable[..., Run], pair: Path, tmp_path: Path
) -> None:
    """The large model's; the small one scales its positions with the length, as published, so it has no end."""
    short = positions(pair, tmp_path, small=100, large=300)
    run = sgl("build", *options(short, tmp_path / "engine"))
    note, last = run.out.splitlines()
    assert note == (
        f"max_tokens is 300: the large model {short / 'large'} was published for no more positions "
        "(max_position_embeddings)"
    )
    assert last.startswith(str(tmp_path / "engine"))
    assert read_manifest(tmp_path / "engine").max_tokens == 300
    content = json.loads(sgl("build", *options(short, tmp_path / "engine", "--json")).out)
    assert (content["notes"], content["built"]) == ([note], [])
    content = json.loads(sgl("build", *options(short, tmp_path / "engine", "--json", "--max-tokens", 256)).out)
    assert content["notes"] == []


def test_more_than_the_models_were_published_for_is_refused(
    sgl: Callable[..., Run], pair: Path, tmp_path: Path
) -> None:
    short = positions(pair, tmp_path, large=300)
    run = sgl("build", *options(short, tmp_path / "engine", "--max-tokens", 301), "--json")
    fails(run, "--max-tokens 301 is more than the 300 positions", short / "large", "give at most 300")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("place", ["/proc/engine", "/proc/nothing/engine"])
def test_a_place_that_cannot_be_written_is_noticed_before_a_checkpoint_is_read(
    sgl: Callable[..., Run], tmp_path: Path, place: str
) -> None:
    fails(sgl("build", *options(tmp_path / "no pair", Path(place)), "--json"), place, "choose another --out")


def test_a_place_behind_a_file(sgl: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "engine"
    fails(sgl("build", *options(tmp_path / "no pair", out), "--json"), out, "choose another --out")


def test_a_name_that_leaves_no_room_for_what_is_beside_it(sgl: Callable[..., Run], tmp_path: Path) -> None:
    out = tmp_path / ("e" * 250)
    fails(sgl("build", *options(tmp_path / "no pair", out), "--json"), "File name too long", "choose another --out")


@pytest.mark.parametrize("name", [b"\xff", b"two\nlines", b"\x1b[2J"])
@pytest.mark.parametrize("option", ["--small", "--large", "--out"])
def test_a_path_that_no_message_could_hold(sgl: Callable[..., Run], tmp_path: Path, option: str, name: bytes) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    others = {"--small": "small", "--large": "large", "--out": "engine"} | {option: path}
    fails(sgl("build", *(part for pair in others.items() for part in pair), "--json"), "is not one line of UTF-8")
    assert list(tmp_path.iterdir()) == []
