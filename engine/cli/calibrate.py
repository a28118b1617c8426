"""Choose how an engine directory answers by default, from labelled runs, and write it there.

An exit threshold, and with it the guidance of the run that it was found on: of all runs, criteria and thresholds the
one that is wished for. Exactly one wish: a share of early exits, a score of the whole cascade, its nearness to the
large model without pruning, or its cost a question. `--label BENCHMARK` makes or continues a run, on every rank where
mpiexec started this; `sgl evaluate --label` does, too.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from engine.batch.crew import Peers
from engine.batch.share import Machine
from engine.cli.benchmark_run import add_benchmark_arguments, answer_benchmark_run, read_benchmark_run
from engine.cli.command_line import fraction, names, run_command
from engine.cli.question_options import add_group, read_options
from engine.cli.ranks import on_ranks
from engine.cli.run_costs import CostBy, cost_of
from engine.config import ExitConfig, ExitCriterion
from engine.engine_directory import read_manifest, write_manifest
from engine.errors import RequestError
from engine.evaluation.benchmarks import BENCHMARKS
from engine.evaluation.cascade import Labelled, by_criterion
from engine.evaluation.front import Curve, Point, Wish, below, check_alike, front, grades_alone, need_alone
from engine.evaluation.record import Record, RunSettings, read_run
from engine.evaluation.run import Run
from engine.manifest import Manifest
from engine.options import Given, over

CRITERIA = (ExitCriterion.CONFIDENCE, ExitCriterion.DECISION_SCORE)
"""That are chosen among where none is named: without the consistency pass, and with it."""
LabelledRun = tuple[Path, RunSettings, list[Record]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", type=Path, required=True, metavar="ENGINE_DIR")
    parser.add_argument(
        "--run",
        dest="labelled",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE.jsonl",
        help="where labelled runs lie; of several, each with guidance of its own, the best is chosen",
    )
    parser.add_argument(
        "--label",
        choices=list(BENCHMARKS),
        metavar="BENCHMARK",
        help="first let both models answer its questions (default: the run is there, by sgl evaluate --label)",
    )
    add_benchmark_arguments(parser)
    wish = parser.add_mutually_exclusive_group(required=True)
    wish.add_argument("--exit-ratio", type=fraction, help="at least this share of questions exits early")
    wish.add_argument("--score", "--accuracy", type=fraction, help="the cheapest whose score is at least this")
    wish.add_argument("--cost", "--seconds", type=float, help="the best that costs at most this, a question")
    wish.add_argument(
        "--within",
        type=float,
        metavar="POINTS",
        help="the cheapest whose score is at most so many points (percent) below that of the large model without "
        "pruning; one of the runs is of --no-guidance",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=1.0,
        help="of --within: standard errors of the difference that it has to spare, as a threshold that was chosen on "
        "a run does better there than elsewhere (default: %(default)s)",
    )
    parser.add_argument(
        "--cost-by",
        choices=names(CostBy),
        default=CostBy.SECONDS,
        help="what a question costs: seconds as measured, or sgl plan's arithmetic as a share of what the large model "
        "alone takes (default: %(default)s)",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="OUT.png",
        help="draw score over exits for every criterion; of several runs, score over cost",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    add_group(parser, ExitConfig)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, and return the exit status."""
    return run_command(
        lambda: on_ranks(
            arguments, partial(lead, arguments), lambda manifest, started: read_labelled_run(arguments, manifest)
        ),
        "interrupted; what was answered is kept, and the same command continues",
    )


def lead(arguments: argparse.Namespace, peers: Peers, machine: Machine | None) -> None:
    """As rank 0, or alone. Raises EngineError."""
    if arguments.label is None and (arguments.limit is not None or arguments.data != Path()):
        raise RequestError("--limit and --data are of a run that --label makes; leave them out, or name a benchmark")
    if arguments.label is not None:
        if len(arguments.labelled) > 1:
            raise RequestError("--label makes one run; give one file with --run, then all of them without --label")
        manifest = read_manifest(arguments.engine)
        run = read_labelled_run(arguments, manifest)
        answer_benchmark_run(arguments, manifest, run, arguments.labelled[0], peers, machine)
    calibrate(arguments)


def read_labelled_run(arguments: argparse.Namespace, manifest: Manifest) -> Run:
    """Raises EngineError."""
    return read_benchmark_run(arguments, manifest, arguments.label, is_labelled=True)


def check_engine(manifest: Manifest, settings: RunSettings, directory: Path, path: Path) -> None:
    """Raises RequestError for a run of other engines."""
    if settings.engine != {name: component.key for name, component in manifest.components.items()}:
        raise RequestError(f"{path} is a run of another engine than {directory}; make a run of this one")


def read_runs(paths: Sequence[Path], manifest: Manifest, directory: Path) -> list[LabelledRun]:
    """Raises RequestError, also unless all are of this engine and of the same questions."""
    runs = [(path, *read_run(path)) for path in paths]
    for path, settings, _ in runs:
        check_engine(manifest, settings, directory, path)
    check_alike(runs)
    return runs


def asked_of(settings: RunSettings, given: Given, path: Path) -> ExitConfig:
    """Raises RequestError for another retention of the consistency pass than what the run's evidence is of."""
    asked = over(settings.exit, given)
    if asked.consistency_retention != settings.exit.consistency_retention:
        raise RequestError(
            f"{path} was made with --consistency-retention {settings.exit.consistency_retention}; "
            "leave the option out, or make the run again"
        )
    return asked


def calibrate(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    given, manifest = read_options(arguments), read_manifest(arguments.engine)
    runs, by = read_runs(arguments.labelled, manifest, arguments.engine), CostBy(arguments.cost_by)
    within = None if arguments.within is None else arguments.within / 100
    wish, alone = Wish(arguments.exit_ratio, arguments.score, arguments.cost, within), grades_alone(runs)
    need_alone(wish, alone)
    criteria = [ExitCriterion(given["exit_criterion"])] if "exit_criterion" in given else CRITERIA
    found: list[dict[ExitCriterion, Labelled]] = []
    curves: list[Curve] = []
    for path, settings, records in runs:
        asked = asked_of(settings, given, path)
        labelled = by_criterion(records, asked, path, cost_of(by, manifest, settings.guidance, records))
        found.append(labelled)
        for criterion in criteria:
            one, cascade = labelled[criterion], labelled[criterion].cascade()
            lost = None
            if alone is not None:
                lost = below(one, cascade, np.array([alone[record.id] for record in records]), arguments.margin)
            curves.append(Curve(path, settings.guidance, replace(asked, criterion=criterion), cascade, lost))
    chosen = wish.choose(curves)
    if arguments.figure is not None:
        from engine.evaluation.figures import draw_cascades, draw_front, save_figure

        several = len(runs) > 1
        save_figure(draw_front(curves, chosen, by.unit()) if several else draw_cascades(found[0]), arguments.figure)
    write_manifest(arguments.engine, replace(manifest, guidance=chosen.curve.guidance, exit=chosen.exit()))
    report = {
        "run": str(chosen.curve.path),
        "guidance": asdict(chosen.curve.guidance),
        "criterion": chosen.curve.exit.criterion,
        "exit_threshold": chosen.exit().exit_threshold,
        **figures_of(chosen),
        "cost_by": by,
        "questions": len(runs[0][2]),
        "front": [
            {
                "run": str(point.curve.path),
                "criterion": point.curve.exit.criterion,
                "exit_threshold": point.exit().exit_threshold,
                **figures_of(point),
            }
            for point in front(curves)
        ],
        "area": {criterion: curve.cascade().area() for criterion, curve in found[0].items()},
        "auc": {criterion: curve.auc() for criterion, curve in found[0].items()},
    }
    if arguments.json:
        print(json.dumps(report))
        return
    for criterion, curve in found[0].items():
        auc = curve.auc()
        print(f"  {criterion:14} area {curve.cascade().area():.4f} · AUC {'none' if auc is None else f'{auc:.4f}'}")
    by_run = f" as in {chosen.curve.path}" if len(runs) > 1 else ""
    print(
        f"{arguments.engine}: answers{by_run}, exits from {chosen.curve.exit.criterion} "
        f"{chosen.exit().exit_threshold:.6g} on; of {len(runs[0][2])} questions {chosen.exit_ratio:.1%} exit, "
        f"score {chosen.score:.4f}, {chosen.cost:.3f} {by.unit()}"
    )


def figures_of(point: Point) -> dict[str, float]:
    return {"exit_ratio": point.exit_ratio, "score": point.score, "cost": point.cost}
