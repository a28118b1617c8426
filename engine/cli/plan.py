"""Say what a pair will need on each GPU, before anything is built or downloaded: memory, what fits, communication.

Weights are not needed: a model is a checkpoint directory, of which config.json is read, or a published size's name.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.command_line import add_feature_cache, names, positive, run_command, size
from engine.cli.plan_load import add_load_arguments, check_models, plan_measured, plan_predicted
from engine.cli.question_options import add_option, read_options
from engine.config import GuidanceConfig, SamplingConfig
from engine.errors import EngineError
from engine.families import published
from engine.model_config import TilingConfig
from engine.options import BY_NAME, over
from engine.planning.chip import Chip
from engine.planning.plan_config import PlanConfig
from engine.planning.workload import FRAME, Workload
from engine.target import Precision, Target
from engine.units import size_text

if TYPE_CHECKING:
    from engine.planning.pair_plan import PairPlan

GIB = 1 << 30
PRUNING = ("retention_ratio", "prune_layer", "average_retention", "schedule", "no_guidance")
"""What options of a question say of a plan."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--small", metavar="MODEL", help="guiding model: a checkpoint directory, or e.g. InternVL2-2B")
    add("--large", metavar="MODEL", help="guided model, likewise")
    add(
        "--tp",
        type=positive,
        default=PlanConfig.world_size,
        metavar="N",
        help=f"GPUs that share the large model {default}",
    )
    add("--target", choices=names(Target), default=PlanConfig.target, help=default)
    add("--precision", choices=names(Precision), default=PlanConfig.precision, help=default)
    add(
        "--gpu-memory",
        type=size,
        default=f"{Chip.memory / GIB:g}GiB",
        metavar="80GB",
        help=f"of each GPU (default: %(default)s, an {Chip.name})",
    )
    add(
        "--reserve",
        type=size,
        default=f"{Chip.reserve / GIB:g}GiB",
        metavar="1GiB",
        help=f"of it, what the driver and the libraries take {default}",
    )
    add_feature_cache(parser)
    add("--json", action="store_true", help="print one JSON object")

    questions = parser.add_argument_group("the questions")
    add = questions.add_argument
    add("--batch", type=positive, default=Workload.batch, help=f"of the memory table, questions at once {default}")
    add(
        "--tiles",
        type=positive,
        help="of a question's pictures, thumbnails included; where a model does not cut them up, pictures of as "
        "many pixels (default: the large model's most, none with --frames)",
    )
    add(
        "--frames",
        type=positive,
        metavar="N",
        help=f"of a question's clip, of {FRAME[0]} x {FRAME[1]} pixels (default: no clip)",
    )
    add(
        "--encoded-tiles",
        type=positive,
        metavar="N",
        help="of them, those that the large model is shown, as others hold nothing that it keeps (default: all)",
    )
    add(
        "--text-tokens",
        type=positive,
        default=Workload.text_tokens,
        help=f"of the prompt beside the pictures {default}",
    )
    add_option(questions, BY_NAME["max_new_tokens"])
    pruning = parser.add_argument_group("pruning in the large model")
    for name in PRUNING:
        add_option(pruning, BY_NAME[name])

    add = parser.add_argument_group(f"the prediction, by default for an {Chip.name}").add_argument
    for option, value, unit, what in (
        ("--bandwidth", Chip.bandwidth / 1e9, "GB/s", "of a GPU's memory"),
        ("--matrix-rate", Chip.matrix_rate / 1e12, "TFLOP/s", "of dense matrix products"),
        ("--interconnect", Chip.interconnect / 1e9, "GB/s", "between GPUs, in each direction"),
        ("--reduce-latency", Chip.reduce_latency * 1e6, "us", "of the smallest all-reduce"),
    ):
        add(option, type=rate, default=value, metavar=unit, help=f"{what}, in {unit} (default: {value:g})")
    add_load_arguments(parser, rate)


def run(arguments: argparse.Namespace) -> int:
    """Plan, and return the exit status."""
    return run_command(lambda: plan(arguments))


def plan(arguments: argparse.Namespace) -> None:
    """Plan, and print it. Raises EngineError."""
    check_models(arguments)
    if arguments.engine is not None:
        plan_measured(arguments, read_options(arguments))
        return
    # Only here: what graphs are declared with takes long to import.
    from engine.planning.pair_plan import plan_pair
    from engine.planning.report import make_report, to_json, to_tables

    given, chip = read_options(arguments), read_chip(arguments)
    if chip.usable() <= 0:
        raise EngineError(
            f"--reserve {size_text(arguments.reserve)} leaves nothing of --gpu-memory "
            f"{size_text(arguments.gpu_memory)}; give more memory or a smaller reserve"
        )
    pair = plan_pair(
        PlanConfig(
            small=directory_of(arguments.small),
            large=directory_of(arguments.large),
            target=Target(arguments.target),
            precision=Precision(arguments.precision),
            world_size=arguments.tp,
            feature_cache=arguments.feature_cache,
            guidance=over(GuidanceConfig(), given),
        )
    )
    tiles = arguments.tiles or (0 if arguments.frames else pair.large.config.most_tiles())
    check_encoded(arguments.encoded_tiles, tiles, pair)
    workload = Workload(
        tiles=tiles,
        frames=arguments.frames or 0,
        encoded_tiles=arguments.encoded_tiles,
        batch=arguments.batch,
        text_tokens=arguments.text_tokens,
        new_tokens=over(SamplingConfig(), given).max_new_tokens,
    )
    if arguments.load is not None:
        plan_predicted(arguments, given, pair, chip, workload)
        return
    report = make_report(pair, workload, chip)
    if arguments.json:
        print(json.dumps(to_json(report)))
    else:
        from rich.console import Console

        Console(highlight=False).print(to_tables(report))


def directory_of(model: str) -> Path:
    """Of a checkpoint, or of a published size. Raises CheckpointError."""
    return Path(model) if Path(model).exists() else published(model)


def check_encoded(encoded: int | None, tiles: int, pair: "PairPlan") -> None:
    """Raises EngineError for a number of tiles that no question has."""
    if encoded is None:
        return
    large = pair.large.config
    if not isinstance(large.tiling, TilingConfig):
        raise EngineError(f"--encoded-tiles is of models that encode tiles one by one, and {large.name} does not")
    if pair.guidance is None:
        raise EngineError("--encoded-tiles is of a model that keeps some of its visual tokens; leave it out")
    if encoded > tiles:
        raise EngineError(f"--encoded-tiles {encoded} is more than the question's {tiles} tiles; give fewer")


def rate(text: str) -> float:
    """An argument above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def read_chip(arguments: argparse.Namespace) -> Chip:
    """The named one as long as none of its figures is changed."""
    chip = Chip(
        memory=arguments.gpu_memory,
        reserve=arguments.reserve,
        bandwidth=arguments.bandwidth * 1e9,
        matrix_rate=arguments.matrix_rate * 1e12,
        interconnect=arguments.interconnect * 1e9,
        reduce_latency=arguments.reduce_latency / 1e6,
    )
    return chip if replace(chip, memory=Chip.memory, reserve=Chip.reserve) == Chip() else replace(chip, name="a GPU")
