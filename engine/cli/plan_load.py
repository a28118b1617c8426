"""`sgl plan --load`: what becomes of questions that come at random, and how many GPUs or machines they take."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.build_progress import OnProgress, build_progress
from engine.cli.command_line import fraction, positive
from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ServingConfig
from engine.errors import EngineError, RequestError, Setting
from engine.options import Given, over

if TYPE_CHECKING:
    from engine.planning.load.search import Terms, Way
    from engine.planning.load.service import Service
    from engine.planning.load.traffic import Kind, Traffic
    from engine.planning.workload import Workload
    from engine.runtime.pipeline import SglPipeline

RETENTIONS = (0.05, 0.1, 0.2, 0.4)
"""That are searched, where a goal is given and nothing says what is kept."""
MAX_RUNNING = (4, 16, 64)
"""Questions at once that are searched, likewise."""
EXIT_RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Of a labelled run, whose thresholds are searched."""
AT_ONCE = (1, 1, 2, 4, 8, 16)
"""Questions together while runs are measured."""
SCORE, RETENTION = "score", "retention"


def add_load_arguments(parser: argparse.ArgumentParser, rate: Callable[[str], float]) -> None:
    add = parser.add_argument_group("questions that come at random").add_argument
    default = "(default: %(default)s)"
    add("--load", type=rate, metavar="RATE", help="so many a second: simulate them, and say how many GPUs they take")
    add("--engine", type=Path, metavar="ENGINE_DIR", help="measure runs of this one here, in the place of a prediction")
    add("--threads", type=positive, help="of the measured engines (default: the cores that it may use)")
    add("--answers", type=Path, metavar="FILE.jsonl", help="ask what was asked there, as sgl batch answered it")
    add("--mix", type=mix, metavar="TILES:TOKENS[:WEIGHT],…", help="tiles and answers of several kinds of questions")
    add("--exit-ratio", type=fraction, default=0.0, help=f"share that the small model answers {default}")
    add("--known", type=fraction, default=0.0, help=f"share about pictures that were asked about lately {default}")
    add("--replicas", type=positive, help="processes that answer (default: the fewest that meet the goals)")
    add("--max-running", type=positive, help=f"questions at once (default: {ServingConfig.max_running})")
    add("--max-waiting", type=int, default=ServingConfig.max_waiting, help=f"questions that may wait {default}")
    add("--prefill-chunk", type=positive, default=ServingConfig.prefill_chunk, help=f"prompt rows at once {default}")
    add("--slo", action="append", type=goal, default=[], metavar="GOAL", help="e.g. 'p95 ttft 300ms'; search for it")
    add("--runs", type=Path, nargs="+", default=[], metavar="FILE.jsonl", help="of sgl evaluate --label: their scores")
    add("--figure", type=Path, metavar="OUT.png", help="draw cost and quality")


def plan_predicted(arguments: argparse.Namespace, given: Given, pair: Any, chip: Any, workload: "Workload") -> None:
    """By the roofline. Raises EngineError."""
    from engine.planning.load.service import predicted_service
    from engine.planning.report import assumptions

    kinds = read_kinds(arguments, given, workload.tiles)
    longest = replace(
        workload,
        batch=1,
        tiles=max(workload.tiles, *(sum(kind.size.tiles) for kind in kinds)),
        text_tokens=max(kind.size.text_tokens for kind in kinds),
    )
    service = predicted_service(pair, chip, longest, arguments.prefill_chunk)
    with build_progress(quiet=arguments.json) as on_progress:
        show(arguments, given, service, kinds, f"PREDICTED, {assumptions(chip)}", on_progress)


def plan_measured(arguments: argparse.Namespace, given: Given) -> None:
    """By what an engine directory takes here. Raises EngineError."""
    from engine.planning.load.measured import measured_times
    from engine.planning.load.service import measured_service
    from engine.runtime.pipeline import SglPipeline

    with build_progress(quiet=arguments.json) as on_progress:
        settings: dict[str, Any] = {"prefill_chunk": arguments.prefill_chunk, "feature_cache": 0, "prefix_cache": 0}
        if arguments.max_running is not None:
            settings["max_running"] = arguments.max_running
        with SglPipeline.load(arguments.engine, arguments.threads, **settings) as pipeline:
            kinds = read_kinds(arguments, given, arguments.tiles or 1)
            ask = question_maker(pipeline, given, kinds)
            times = measured_times(pipeline, ask, AT_ONCE, lambda part: on_progress("measuring runs", part))
            service = measured_service(pipeline, times, arguments.prefill_chunk)
        show(arguments, given, service, kinds, f"measured, {arguments.engine}", on_progress)


def question_maker(pipeline: "SglPipeline", given: Given, kinds: "Sequence[Kind]") -> Callable[[int], Any]:
    """Questions about noise that both models answer, of all kinds in turn."""
    import numpy as np
    from PIL import Image

    from engine.config import NEVER_EXITS
    from engine.model_config import TILE
    from engine.runtime.question import Question

    def make(index: int) -> Question:
        size = kinds[index % len(kinds)].size
        rng = np.random.default_rng(index)
        wide = [max(1, tiles - 1) for tiles in size.tiles]
        images = tuple(Image.fromarray(rng.integers(0, 256, (TILE, TILE * side, 3), np.uint8)) for side in wide)
        exit = replace(pipeline.manifest.exit, enabled=True, exit_threshold=NEVER_EXITS)
        guidance = over(pipeline.manifest.guidance, given)
        sampling = SamplingConfig(max_new_tokens=max(1, size.large_tokens))
        return Question(images, f"What is {index}?", guidance, exit, sampling)

    return make


def read_kinds(arguments: argparse.Namespace, given: Given, tiles: int) -> "tuple[Kind, ...]":
    """Raises RequestError."""
    from engine.planning.load.course import Size
    from engine.planning.load.traffic import Kind, read_answers

    if arguments.answers is not None:
        if arguments.mix is not None:
            raise RequestError("--answers says what is asked, and so does --mix; leave one of them out")
        return read_answers(arguments.answers)
    new_tokens = over(SamplingConfig(), given).max_new_tokens
    text, exits = arguments.text_tokens, arguments.exit_ratio
    return tuple(
        Kind(Size((part,) if part else (), text, tokens, tokens), exits, weight)
        for part, tokens, weight in arguments.mix or ((tiles, new_tokens, 1.0),)
    )


def show(
    arguments: argparse.Namespace,
    given: Given,
    service: "Service",
    kinds: "tuple[Kind, ...]",
    source: str,
    on_progress: OnProgress,
) -> None:
    """Simulate, search and print. Raises EngineError."""
    from engine.planning.load.outlook import LEAST, MOST
    from engine.planning.load.report import draw_front, load_json, load_tables
    from engine.planning.load.search import Found, Terms, front, search
    from engine.planning.load.traffic import Traffic

    terms = Terms(service, tuple(arguments.slo), arguments.max_waiting, over(SamplingConfig(), given).max_new_tokens)
    traffic = Traffic(kinds, arguments.load, arguments.known)
    ways = list(make_ways(arguments, given, terms, traffic))
    if arguments.replicas is not None:
        found = [Found(way, arguments.replicas, terms.look(way, arguments.replicas)) for way in ways]
    else:
        found = search(terms, ways, lambda part: on_progress("searching", part))
    best = front(found) or found[:1]
    sure = []
    for number, one in enumerate(best, 1):
        progress = partial(on_progress, f"simulating {number} of {len(best)}")
        outlook = terms.look(one.way, one.replicas or 1, LEAST, MOST, on_progress=progress)
        sure.append(replace(one, outlook=outlook))
    quality = SCORE if arguments.runs else RETENTION
    if arguments.figure is not None:
        draw_front(sure, found, terms, quality, arguments.figure)
    if arguments.json:
        print(json.dumps(load_json(terms, arguments.load, source, quality, sure)))
    else:
        from rich.console import Console

        Console(highlight=False).print(load_tables(terms, arguments.load, source, quality, sure))


def make_ways(arguments: argparse.Namespace, given: Given, terms: "Terms", traffic: "Traffic") -> "Iterator[Way]":
    """Those that are searched: of labelled runs their retention and thresholds, else some retentions and layers."""
    from engine.planning.load.search import Way

    service = terms.service
    at_once = [arguments.max_running] if arguments.max_running is not None else [ServingConfig.max_running]
    if arguments.slo and arguments.max_running is None:
        at_once = list(MAX_RUNNING)
    most = service.most_running
    at_once = sorted({number if most is None else min(number, most) for number in at_once})
    if arguments.runs:
        choices = [choice for path in arguments.runs for choice in labelled_choices(path, terms, traffic)]
    else:
        layers = service.large.config.language.num_layers
        exit = ExitConfig(enabled=traffic.exit_ratio() > 0)
        guidances = [service.resolved(guidance) for guidance in wanted_guidances(arguments, given)]
        averages = [1.0 if guidance is None else guidance.average(layers) for guidance in guidances]
        choices = [
            Way(guidance, exit, 1, traffic, average) for guidance, average in zip(guidances, averages, strict=True)
        ]
    for choice, number in product(choices, at_once):
        yield replace(choice, max_running=number)


def wanted_guidances(arguments: argparse.Namespace, given: Given) -> list[GuidanceConfig]:
    asked = over(GuidanceConfig(), given)
    pruning = {"retention_ratio", "average_retention", "no_guidance", "guidance"}
    if not arguments.slo or pruning & given.keys():
        return [asked]
    layers = [asked.prune_layer] if asked.prune_layer is not None else [None, 0]
    return [replace(asked, retention_ratio=ratio, prune_layer=layer) for ratio in RETENTIONS for layer in layers]


def labelled_choices(path: Path, terms: "Terms", traffic: "Traffic") -> "Iterator[Way]":
    """The questions of a labelled run at several thresholds, and their score there. Raises RequestError."""
    from engine.evaluation.cascade import labelled, pick, with_threshold
    from engine.evaluation.record import read_run
    from engine.planning.load.course import Size
    from engine.planning.load.search import Way
    from engine.planning.load.traffic import Kind

    settings, records = read_run(path)
    curve = labelled(records, settings.exit, path)
    cascade = curve.cascade()
    text = traffic.kinds[0].size.text_tokens
    sizes = []
    for record in records:
        assert record.decision is not None, "labelled"
        said = len(record.decision.evidence.probabilities)
        tiles = (record.tiles,) if record.tiles else ()
        sizes.append(Size(tiles, text, said, record.generated_tokens, record.accepted_tokens))
    chosen = {pick(cascade, cascade.exit_ratio() >= ratio, most_exits=False) for ratio in EXIT_RATIOS}
    for exits in sorted(chosen - {None}):  # type: ignore[type-var]
        exit = with_threshold(settings.exit, cascade, exits)  # type: ignore[arg-type]
        values = zip(sizes, curve.values.tolist(), strict=True)
        kinds = tuple(Kind(size, float(value >= exit.exit_threshold)) for size, value in values)
        guidance, asked = terms.service.resolved(settings.guidance), replace(traffic, kinds=kinds)
        yield Way(guidance, exit, 1, asked, float(cascade.grade[exits]), exit.exit_threshold)


def check_models(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    if arguments.engine is not None:
        if arguments.load is None:
            raise EngineError("--engine is measured for questions that come at random; give ", Setting("load"))
        if arguments.small is not None or arguments.large is not None:
            raise EngineError("--engine has its models; leave out --small and --large")
    elif arguments.small is None or arguments.large is None:
        raise EngineError("two models are planned; give --small and --large, or an engine directory and --load")


def mix(text: str) -> tuple[tuple[int, int, float], ...]:
    """An argument such as `7:16,13:100:0.5`."""
    kinds = []
    for part in text.split(","):
        words = part.split(":")
        try:
            tiles, tokens = int(words[0]), int(words[1])
            weight = float(words[2]) if len(words) == 3 else 1.0
            if tiles < 0 or tokens < 1 or not 0 < weight < float("inf") or len(words) > 3:
                raise ValueError
        except (ValueError, IndexError):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not tiles and tokens of an answer, as 7:16, and how often it comes, as 7:16:0.5"
            ) from None
        kinds.append((tiles, tokens, weight))
    return tuple(kinds)


def goal(text: str) -> Any:
    """An argument such as `p95 ttft 300ms`."""
    from engine.planning.load.goal import read_goal

    try:
        return read_goal(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
