"""Build the engine directory of a checkpoint pair: `sgl build --small DIR --large DIR --out DIR`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.build_progress import build_progress
from engine.cli.command_line import names, numbers, positive, run_command
from engine.config import MAX_TOKENS, BuildConfig
from engine.target import Precision, Target
from engine.units import size_text

if TYPE_CHECKING:
    from engine.build.staging import BuildReport

RESUME = "interrupted; run the same command again to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a build; defaults are those of BuildConfig."""
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--small", type=Path, required=True, metavar="DIR", help="checkpoint of the guiding model")
    add("--large", type=Path, required=True, metavar="DIR", help="checkpoint of the guided model")
    add("--out", type=Path, required=True, metavar="DIR", help="engine directory to make or to bring up to date")
    add("--target", choices=names(Target), default=BuildConfig.target, help=f"what runs it {default}")
    add("--precision", choices=names(Precision), default=BuildConfig.precision, help=f"{precisions()} {default}")
    add(
        "--max-tokens",
        type=positive,
        default=BuildConfig.max_tokens,
        help=f"longest prompt and answer together (default: {MAX_TOKENS}, or the positions that the models were "
        "published for if they are less)",
    )
    add("--max-batch", type=positive, default=BuildConfig.max_batch, help=f"most questions at once {default}")
    add(
        "--max-tiles",
        type=positive,
        default=BuildConfig.max_tiles,
        help="most tiles of one picture (default: the checkpoint's own)",
    )
    add(
        "--prune-layers",
        type=numbers,
        default=BuildConfig.prune_layers,
        metavar="2,4,9",
        help="layers of the large model before which it can prune (default: 5, 10, 20, 30 and 40 %% of its layers)",
    )
    add(
        "--max-kept-tokens",
        type=positive,
        default=BuildConfig.max_kept_tokens,
        help="longest sequence of the large model from its first prune point on; shortens the KV caches of TensorRT "
        "targets there (default: --max-tokens)",
    )
    add(
        "--tp",
        type=positive,
        default=BuildConfig.world_size,
        metavar="N",
        help=f"ranks that share the large model {default}",
    )
    add("--rank", type=int, default=BuildConfig.rank, metavar="R", help="build only this rank's part of --tp ranks")
    add("--large-scores", action="store_true", help="let the large model emit attention scores too")
    add("--json", action="store_true", help="print the report as one JSON object, and no progress")


def precisions() -> str:
    """What each target is built in."""
    return "; ".join(f"{target}: {', '.join(target.precisions())}" for target in Target)


def run(arguments: argparse.Namespace) -> int:
    """Build, and return the exit status."""
    return run_command(lambda: build(arguments), RESUME)


def build(arguments: argparse.Namespace) -> None:
    """Build, and print what was made. Raises EngineError."""
    config = BuildConfig(
        small=arguments.small,
        large=arguments.large,
        out=arguments.out,
        target=Target(arguments.target),
        precision=Precision(arguments.precision),
        max_tokens=arguments.max_tokens,
        max_batch=arguments.max_batch,
        max_tiles=arguments.max_tiles,
        prune_layers=arguments.prune_layers,
        max_kept_tokens=arguments.max_kept_tokens,
        large_scores=arguments.large_scores,
        world_size=arguments.tp,
        rank=arguments.rank,
    )
    with build_progress(quiet=arguments.json) as on_progress:
        from engine.build.builder import build_pair

        report = build_pair(config, on_progress)
    print(to_json(config, report) if arguments.json else to_text(config, report))


def to_json(config: BuildConfig, report: "BuildReport") -> str:
    """Stable keys: out, bytes, seconds, peak_bytes, built, resumed, cached, missing, notes."""
    content = {
        "out": str(config.out),
        "bytes": 0 if report.missing else engine_bytes(config.out),
        "seconds": round(report.seconds, 3),
        "peak_bytes": report.peak_bytes,
        "built": report.built,
        "resumed": report.resumed,
        "cached": report.cached,
        "missing": report.missing,
        "notes": report.notes,
    }
    return json.dumps(content)


def to_text(config: BuildConfig, report: "BuildReport") -> str:
    """What there is to know of it, a line each, and the last line that says what was made."""
    return "\n".join((*report.notes, summary(config, report)))


def summary(config: BuildConfig, report: "BuildReport") -> str:
    parts = {
        "built": report.built,
        "resumed from an interrupted build": report.resumed,
        "already there": report.cached,
    }
    counts = ", ".join(f"{len(names)} {what}" for what, names in parts.items() if names)
    if report.missing:
        return (
            f"{config.out}: rank {config.rank} of {config.world_size} is done ({counts}) in {report.seconds:.1f} s, "
            f"peak host memory {size_text(report.peak_bytes)}; still to build: {', '.join(report.missing)}"
        )
    return (
        f"{config.out}: {config.target} {config.precision} engines of {config.small.resolve().name} and "
        f"{config.large.resolve().name}, {size_text(engine_bytes(config.out))} ({counts}) in {report.seconds:.1f} s, "
        f"peak host memory {size_text(report.peak_bytes)}"
    )


def engine_bytes(directory: Path) -> int:
    from engine.engine_directory import read_manifest

    return read_manifest(directory).total_bytes()
