"""Choose the exit threshold of an engine directory from a labelled run and write it there.

`--label BENCHMARK` makes or continues that run, on every rank where mpiexec started this; `sgl evaluate --label` does,
too. Exactly one wish: a share of early exits, a score of the whole cascade, or its seconds a question.
"""

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engine.batch.crew import Peers
from engine.batch.share import Machine
from engine.cli.benchmark_run import add_benchmark_arguments, answer_benchmark_run, read_benchmark_run
from engine.cli.command_line import run_command
from engine.cli.question_options import add_group, read_options
from engine.cli.ranks import on_ranks
from engine.config import ExitConfig
from engine.engine_directory import read_manifest, write_manifest
from engine.errors import RequestError
from engine.evaluation.benchmarks import BENCHMARKS
from engine.evaluation.cascade import Cascade, by_criterion, pick, with_threshold
from engine.evaluation.record import RunSettings, read_run
from engine.evaluation.run import Run
from engine.manifest import Manifest
from engine.options import over


@dataclass(frozen=True)
class Wish:
    """One of them is given. exit_ratio and score: at least this; seconds: at most, a question."""

    exit_ratio: float | None = None
    score: float | None = None
    seconds: float | None = None

    def exits(self, cascade: Cascade) -> int:
        """How many questions of the run exit. Raises RequestError for what no threshold gives."""
        tiny = 1e-12
        if self.exit_ratio is not None:
            name, good, most = "exit ratio", cascade.exit_ratio() >= self.exit_ratio - tiny, False
        elif self.score is not None:
            name, good, most = "score", cascade.grade >= self.score - tiny, True
        else:
            assert self.seconds is not None
            name, good, most = "seconds", cascade.seconds <= self.seconds + tiny, False
        found = pick(cascade, good, most)
        if found is None:
            figures = cascade.grade if self.seconds is None else -cascade.seconds
            best = abs(figures[cascade.reachable].max())
            raise RequestError(f"no threshold gives the wanted {name} on this run; the best is {best:.4g}")
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", type=Path, required=True, metavar="ENGINE_DIR")
    parser.add_argument(
        "--run", dest="labelled", type=Path, required=True, metavar="FILE.jsonl", help="where the labelled run lies"
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
    wish.add_argument("--score", "--accuracy", type=fraction, help="the most exits whose score is at least this")
    wish.add_argument("--seconds", "--cost", type=float, help="the fewest exits that take at most this, a question")
    parser.add_argument("--figure", type=Path, metavar="OUT.png", help="draw score over exits for every criterion")
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
        manifest = read_manifest(arguments.engine)
        run = read_labelled_run(arguments, manifest)
        answer_benchmark_run(arguments, manifest, run, arguments.labelled, peers, machine)
    calibrate(arguments)


def read_labelled_run(arguments: argparse.Namespace, manifest: Manifest) -> Run:
    """Raises EngineError."""
    return read_benchmark_run(arguments, manifest, arguments.label, is_labelled=True)


def check_engine(manifest: Manifest, settings: RunSettings, directory: Path, path: Path) -> None:
    """Raises RequestError for a run of other engines."""
    if settings.engine != {name: component.key for name, component in manifest.components.items()}:
        raise RequestError(f"{path} is a run of another engine than {directory}; make a run of this one")


def calibrate(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    given, manifest = read_options(arguments), read_manifest(arguments.engine)
    settings, records = read_run(arguments.labelled)
    check_engine(manifest, settings, arguments.engine, arguments.labelled)
    # The run's own retention of the consistency pass is what its evidence is of.
    asked = over(settings.exit, given)
    if asked.consistency_retention != settings.exit.consistency_retention:
        raise RequestError(
            f"{arguments.labelled} was made with --consistency-retention {settings.exit.consistency_retention}; "
            "leave the option out, or make the run again"
        )
    curves = by_criterion(records, asked, arguments.labelled)
    cascade = curves[asked.criterion].cascade()
    exits = Wish(arguments.exit_ratio, arguments.score, arguments.seconds).exits(cascade)
    chosen = with_threshold(asked, cascade, exits)
    if arguments.figure is not None:
        from engine.evaluation.figures import draw_cascades, save_figure

        save_figure(draw_cascades(curves), arguments.figure)
    write_manifest(arguments.engine, replace(manifest, exit=chosen))
    report = {
        "criterion": chosen.criterion,
        "exit_threshold": chosen.exit_threshold,
        "exit_ratio": exits / len(records),
        "score": float(cascade.grade[exits]),
        "seconds": float(cascade.seconds[exits]),
        "questions": len(records),
        "area": {criterion: curve.cascade().area() for criterion, curve in curves.items()},
        "auc": {criterion: curve.auc() for criterion, curve in curves.items()},
    }
    if arguments.json:
        print(json.dumps(report))
        return
    for criterion, curve in curves.items():
        auc = curve.auc()
        print(f"  {criterion:14} area {curve.cascade().area():.4f} · AUC {'none' if auc is None else f'{auc:.4f}'}")
    print(
        f"{arguments.engine}: exits from {chosen.criterion} {chosen.exit_threshold:.6g} on; of {len(records)} "
        f"questions {exits / len(records):.1%} exit, score {cascade.grade[exits]:.4f}, "
        f"{cascade.seconds[exits]:.3f} s a question"
    )


def fraction(text: str) -> float:
    """An argument between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value
