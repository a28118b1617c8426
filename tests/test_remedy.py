"""The command that a damaged engine directory asks for makes the same engines again; flags are named in one place."""

import argparse
import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path

from engine.bindings import Scoring
from engine.build_flags import BuildFlag
from engine.cli.build import add_arguments
from engine.config import MAX_TOKENS, BuildConfig, default_prune_layers
from engine.manifest import Manifest
from engine.remedy import rebuild
from engine.target import Precision
from tests.manifests import example_manifest

ROOT = Path(__file__).parent.parent
DOORS = ("engine/cli/", "engine/serve/")
SPELLED = {"engine/build_flags.py", "engine/plugins/compile.py"}
"""The place where they are named, and flags of another program."""
COMMAND = "rebuild with sgl build --small DIR --large DIR --out pair"


def plain_manifest() -> Manifest:
    """Of a build without options; both models have the same tiling of their own."""
    manifest = example_manifest({})
    large = replace(manifest.models["large"], prune_layers=default_prune_layers(3))
    return replace(
        manifest,
        precision=BuildConfig.precision,
        max_tokens=MAX_TOKENS,
        max_batch=BuildConfig.max_batch,
        max_tiles=BuildConfig.max_tiles,
        min_pixels=BuildConfig.min_pixels,
        max_pixels=BuildConfig.max_pixels,
        models={"small": manifest.models["small"], "large": large},
    )


def test_unknown_manifest() -> None:
    assert rebuild(Path("pair")) == f"{COMMAND} and the options of the first build"


def test_defaults_are_left_out() -> None:
    assert rebuild(Path("pair"), plain_manifest()) == COMMAND


def test_no_prune_points_and_scores() -> None:
    manifest = plain_manifest()
    manifest.models["large"] = replace(manifest.models["large"], prune_layers=(), scoring=Scoring.DEFERRED)
    assert rebuild(Path("pair"), manifest) == f"{COMMAND} --prune-layers 0 --large-scores"


def test_command_line_reads_every_option() -> None:
    manifest = example_manifest({})
    manifest.models["large"] = replace(manifest.models["large"], scoring=Scoring.DEFERRED)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(shlex.split(rebuild(Path("a pair"), manifest))[4:])
    assert arguments.out == Path("a pair")
    assert arguments.precision == Precision.INT8
    assert (arguments.max_tokens, arguments.max_batch, arguments.max_tiles) == (513, 3, 3)
    assert (arguments.min_pixels, arguments.max_pixels) == (784, 7840)
    assert (arguments.prune_layers, arguments.large_scores) == ((1, 2), True)


def test_every_named_flag_is_one_of_the_build() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert set(BuildFlag) <= flags


def test_no_room_below_the_doors_spells_a_flag() -> None:
    """Who asks at another door has no command line to type it on."""
    found = []
    for path in sorted((ROOT / "engine").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(DOORS) or name in SPELLED:
            continue
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [f"{name}: {text}" for text in texts if re.search(r"(?<!\S)--[a-z]", text)]
    assert found == []
