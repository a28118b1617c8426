"""Ask an engine directory a question about pictures; the text streams as it comes, then how it came about."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.cli.command_line import add_running_arguments, names, numbers, positive, printable, read_device, run_command
from engine.cli.describe import describe, to_json
from engine.config import (
    ExitConfig,
    ExitCriterion,
    GuidanceConfig,
    GuidanceSource,
    Normalise,
    PictureConfig,
    SamplingConfig,
    ScoreRows,
)
from engine.errors import EngineError, RequestError
from engine.families import Turn
from engine.runtime.answer import Answer
from engine.runtime.early_exit import needs_consistency
from engine.runtime.images import ImageSource, read_source
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import OnText
from engine.runtime.tensor_parallel import Ranks, started_by_mpiexec

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a question. What is not given comes from the engine directory, or is SamplingConfig's default."""
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    parser.add_argument("question", help="<image> in it marks where a picture goes; else pictures go first")
    add = parser.add_argument
    add("--picture", type=Path, metavar="OUT.png", help="draw which visual tokens were kept, and their importance")
    add("--no-stream", action="store_true", help="print the text when it is complete")
    add("--json", action="store_true", help="print one JSON object, nothing else")
    add_asking_arguments(parser)


def add_asking_arguments(parser: argparse.ArgumentParser) -> None:
    """What every question has but its text: pictures, where it runs, guidance, early exit, sampling."""
    add = parser.add_argument
    add(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture: a file, - for standard input, or a URL; give it again for more",
    )
    add("--allow-image-urls", action="store_true", help="fetch pictures over http and https, from public addresses")
    add("--auto-orient", action="store_true", help="turn pictures as their EXIF orientation says")
    add(
        "--background",
        type=numbers,
        metavar="R,G,B",
        help="what is seen through transparent pixels, such as 255,255,255",
    )
    add_running_arguments(parser)
    add_guidance_arguments(parser)
    add_exit_arguments(parser)

    add = parser.add_argument_group("sampling").add_argument
    default = "(default: %(default)s)"
    add("--max-new-tokens", type=positive, default=SamplingConfig.max_new_tokens, help=default)
    add("--temperature", type=float, default=SamplingConfig.temperature, help=f"0 is greedy {default}")
    # Those without a default here are refused where nothing would read them.
    add("--top-p", type=float, help=f"(default: {SamplingConfig.top_p})")
    add("--top-k", type=int, help=f"0 keeps every token (default: {SamplingConfig.top_k})")
    add("--seed", type=int, help=f"of drawn tokens and of random guidance (default: {SamplingConfig.seed})")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; give it again for more")


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """What `read_guidance` reads."""
    group = parser.add_argument_group("guidance: which visual tokens the large model keeps")
    add = group.add_argument
    add("--guidance", choices=names(GuidanceSource), help="what ranks the tokens: SGP's small model, or a baseline")
    add_pruning_arguments(group)
    add("--score-rows", choices=names(ScoreRows), help="whose attention counts")
    add("--score-layers", type=float, help="fraction of the layers whose attention counts")
    add("--guide-max-new-tokens", type=positive, help="most tokens that the small model says (default: the answer's)")


def add_pruning_arguments(group: argparse._ArgumentGroup) -> None:
    """What `read_pruning` reads."""
    add = group.add_argument
    add("--retention-ratio", type=float, help="fraction of visual tokens kept from the prune layer on")
    add("--prune-layer", type=int, help="prune before this layer, one of those built")
    add(
        "--average-retention",
        "--retention",
        type=float,
        help="mean fraction kept over all layers, instead of the two above",
    )
    add("--no-guidance", action="store_true", help="the large model keeps every visual token")


def add_exit_arguments(parser: argparse.ArgumentParser) -> None:
    """What `read_exit` reads."""
    add = parser.add_argument_group("early exit: when the small model's answer is good enough").add_argument
    add(
        "--exit-threshold",
        type=float,
        help="exit if the criterion's value is at least this (0..1; entropy: 0 or less)",
    )
    add("--exit-criterion", choices=names(ExitCriterion), help="what is compared with the threshold")
    add("--normalise", choices=names(Normalise), help="consistency: product of token probabilities, or their mean")
    add("--consistency-retention", type=float, help="fraction of visual tokens that the consistency pass keeps")
    add("--no-early-exit", action="store_true", help="the large model always answers")


def run(arguments: argparse.Namespace) -> int:
    """Ask, and return the exit status."""
    return run_command(lambda: on_ranks(arguments.engine, lambda ranks: ask(arguments, ranks)))


def on_ranks(engine: Path, command: Callable[[Ranks | None], None]) -> None:
    """Run a command, where mpiexec started ranks on the first of them and with all. Raises EngineError."""
    if not started_by_mpiexec():
        command(None)
        return
    try:
        from engine.runtime.tensor_parallel_rank import with_ranks
    except (ImportError, RuntimeError) as error:  # mpi4py is missing, or the MPI library that it looks for
        reason = str(error).partition("\n")[0]
        raise EngineError(
            f"mpiexec started this, but MPI does not work in this environment ({reason}); pip install 'sgl-engine[mpi]'"
        ) from None
    with_ranks(engine, command)


@dataclass(frozen=True)
class Opened:
    """An engine directory, and how its questions are answered."""

    pipeline: SglPipeline
    guidance: GuidanceConfig
    exit: ExitConfig
    sampling: SamplingConfig
    images: tuple[ImageSource, ...]
    picture: PictureConfig

    def answer(self, question: str, on_text: OnText | None, history: Sequence[Turn] = ()) -> Answer:
        settings: dict[str, Any] = {"guidance": self.guidance, "exit": self.exit, "sampling": self.sampling}
        settings |= {"on_text": on_text, "history": history, "picture": self.picture}
        return self.pipeline.answer(self.images, question, **settings)


def open_engine(arguments: argparse.Namespace, ranks: Ranks | None) -> Opened:
    """As `add_asking_arguments` asks for it. Raises EngineError."""
    sampling, picture = read_sampling(arguments), PictureConfig(arguments.auto_orient, arguments.background)
    images = tuple(read_source(text, arguments.allow_image_urls) for text in arguments.image)
    # The large model loads when the small one was not sure, so that an early exit does not wait for it.
    pipeline = SglPipeline.load(
        arguments.engine, arguments.threads, preload=False, ranks=ranks, device=read_device(arguments)
    )
    guidance = read_guidance(arguments, pipeline.manifest.guidance)
    exit = read_exit(arguments, pipeline.manifest.exit)
    refuse_unused(arguments, guidance, exit, draws=sampling.temperature > 0)
    return Opened(pipeline, guidance, exit, sampling, images, picture)


def ask(arguments: argparse.Namespace, ranks: Ranks | None) -> None:
    """Ask, and print the answer. Raises EngineError."""
    check_picture(arguments.picture, arguments.image)
    engine = open_engine(arguments, ranks)
    with engine.pipeline:
        streams = not (arguments.json or arguments.no_stream)
        streamed: list[str] = []

        def stream(piece: str) -> None:
            print(printable(piece), end="", flush=True)
            streamed.append(piece)

        try:
            answer = engine.answer(arguments.question, stream if streams else None)
        except EngineError:
            if streamed:
                print(flush=True)  # what is said about the error starts a line of its own
            raise
        if streams:
            print()
        elif not arguments.json:
            print(printable(answer.text))
        if arguments.picture is not None:
            from engine.cli.draw_pruning import draw_answer, save

            save(draw_answer(engine.images, answer, engine.picture), arguments.picture)
        if arguments.json:
            print(json.dumps(to_json(answer, engine.exit, arguments.picture), ensure_ascii=False, allow_nan=False))
        else:
            print(describe(answer, engine.exit, arguments.picture))


def read_guidance(arguments: argparse.Namespace, default: GuidanceConfig) -> GuidanceConfig:
    """What was asked for, over the engine's own. Raises RequestError."""
    if arguments.no_guidance and arguments.guidance is not None:
        raise RequestError(f"--no-guidance keeps every visual token; leave it out or --guidance {arguments.guidance}")
    return replace(
        read_pruning(arguments, default),
        source=GuidanceSource(arguments.guidance or default.source),
        score_rows=ScoreRows(arguments.score_rows or default.score_rows),
        score_layers=default.score_layers if arguments.score_layers is None else arguments.score_layers,
        guide_max_new_tokens=arguments.guide_max_new_tokens or default.guide_max_new_tokens,
    )


def read_pruning(arguments: argparse.Namespace, default: GuidanceConfig) -> GuidanceConfig:
    """Where and how much is pruned, over the default. Raises RequestError."""
    wanted = {"retention_ratio": arguments.retention_ratio, "prune_layer": arguments.prune_layer}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if arguments.no_guidance and (wanted or arguments.average_retention is not None):
        raise RequestError("--no-guidance keeps every visual token; leave it out to choose how many are kept")
    if arguments.average_retention is not None:
        if wanted:
            raise RequestError(
                "--average-retention chooses prune layer and retention ratio; leave out --prune-layer and "
                "--retention-ratio or it"
            )
        default = replace(default, average_retention=arguments.average_retention)
    elif wanted:
        default = replace(default, average_retention=None, **wanted)
    return replace(default, enabled=default.enabled and not arguments.no_guidance)


def read_exit(arguments: argparse.Namespace, default: ExitConfig) -> ExitConfig:
    """What was asked for, over the engine's own. Raises RequestError."""
    retention = arguments.consistency_retention
    chosen = (arguments.exit_threshold, arguments.exit_criterion, arguments.normalise, retention)
    if arguments.no_early_exit and any(value is not None for value in chosen):
        raise RequestError("--no-early-exit asks no criterion; leave it out to choose one, or its threshold")
    return replace(
        default,
        enabled=default.enabled and not arguments.no_early_exit,
        exit_threshold=default.exit_threshold if arguments.exit_threshold is None else arguments.exit_threshold,
        criterion=ExitCriterion(arguments.exit_criterion or default.criterion),
        normalise=Normalise(arguments.normalise or default.normalise),
        consistency_retention=default.consistency_retention if retention is None else retention,
    )


def read_sampling(arguments: argparse.Namespace) -> SamplingConfig:
    """Raises RequestError."""
    chosen = {name: getattr(arguments, name) for name in ("top_p", "top_k", "seed")}
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        stop=tuple(arguments.stop),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if (given := first_given(arguments, "top_p", "top_k")) and not sampling.temperature:
        raise RequestError(f"{given} is of drawn tokens, and temperature 0 draws none; leave it out")
    return sampling


def refuse_unused(arguments: argparse.Namespace, guidance: GuidanceConfig, exit: ExitConfig, draws: bool) -> None:
    """Raises RequestError for a given option that nothing reads. draws: whether tokens are drawn."""
    agrees = exit.enabled and needs_consistency(exit)
    if (given := first_given(arguments, "normalise", "consistency_retention")) and not agrees:
        raise RequestError(f"{given} is of the consistency, which {exit.criterion} does not ask for; leave it out")
    given = first_given(arguments, "score_rows", "score_layers")
    if given and guidance.enabled and not guidance.source.sums_scores():
        able = " and ".join(source for source in GuidanceSource if source.sums_scores())
        raise RequestError(f"{given} is of guidance {able}, and {guidance.source} does not read it; leave it out")
    if given and not guidance.enabled and not agrees:
        raise RequestError(f"{given} ranks visual tokens, and without guidance and consistency none is; leave it out")
    given = first_given(arguments, "guide_max_new_tokens")
    if given and not exit.enabled and not (guidance.enabled and guidance.source is GuidanceSource.SMALL):
        raise RequestError(f"{given} is of the small model, which is not asked; leave it out")
    given = first_given(arguments, "seed")
    if given and not draws and not (guidance.enabled and guidance.source is GuidanceSource.RANDOM):
        raise RequestError(
            f"{given} is of drawn tokens and of guidance {GuidanceSource.RANDOM}, and nothing is drawn; leave it out"
        )


def first_given(arguments: argparse.Namespace, *names: str) -> str | None:
    """The first of these options that was given, as it is typed."""
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None), None)


def check_picture(path: Path | None, images: Sequence[str]) -> None:
    """Raises RequestError before any work is done for a drawing that could not be written."""
    if path is None:
        return
    if not images:
        raise RequestError(f"--picture {path} shows what was kept of pictures, and there is none; give an --image")
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise RequestError(f"--picture {path} ends in none of {', '.join(PICTURE_SUFFIXES)}; rename it")
    if path.is_dir():
        raise RequestError(f"--picture {path} is a directory; give the name of a file")
    if any(path.exists() and Path(image).exists() and path.samefile(image) for image in images):
        raise RequestError(f"--picture {path} is a picture that is asked about; give the name of another file")
    if not path.parent.is_dir():
        raise RequestError(f"--picture {path} lies in a directory that does not exist; create {path.parent} first")
