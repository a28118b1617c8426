"""What to do about an engine directory that cannot be used."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from engine.build_flags import BuildFlag
from engine.config import MAX_TOKENS, BuildConfig, default_prune_layers
from engine.manifest import Manifest
from engine.parallel import SHARDED


def build_ranks(components: Sequence[str]) -> str:
    """How to build these components of an engine of which other ranks are built."""
    ranks = sorted(
        {int(name.rpartition("rank")[2]) if name.startswith(f"{SHARDED}/language/") else 0 for name in components}
    )
    options = " and ".join(f"{BuildFlag.RANK} {rank}" for rank in ranks)
    return f"run sgl build with {options} and otherwise the options of the ranks that are there"


def rebuild(directory: Path, manifest: Manifest | None = None) -> str:
    """The command that builds the directory again, with the options that made it where its manifest is known."""
    checkpoints = f"{BuildFlag.SMALL} DIR {BuildFlag.LARGE} DIR"
    command = f"rebuild with sgl build {checkpoints} {BuildFlag.OUT} {shlex.quote(str(directory))}"
    return f"{command} and the options of the first build" if manifest is None else command + _options(manifest)


def _options(manifest: Manifest) -> str:
    """What was other than the defaults of a build."""
    large = manifest.models["large"]
    names = ("target", "precision", "max_tokens", "max_batch", "max_tiles", "max_kept_tokens")
    options = {name: getattr(manifest, name) for name in names}
    defaults = {name: getattr(BuildConfig, name) for name in names} | {"max_tokens": MAX_TOKENS}
    options = {name: value for name, value in options.items() if value != defaults[name]}
    if manifest.world_size != BuildConfig.world_size:
        options["tp"] = manifest.world_size
    if large.prune_layers != default_prune_layers(large.config.language.num_layers):
        options["prune_layers"] = ",".join(map(str, large.prune_layers)) or "0"
    text = "".join(f" {BuildFlag[name.upper()]} {value}" for name, value in options.items())
    return text + f" {BuildFlag.LARGE_SCORES}" * large.scores
