"""Run a benchmark through an engine directory: a line of JSON for each question, figures at the end.

A run that was interrupted, or killed, continues where it stopped. Started by mpiexec, each rank opens an engine.
`--label` lets both models answer every question, which `sgl calibrate` needs.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from engine.batch.crew import Peers
from engine.batch.share import Machine
from engine.cli.benchmark_run import add_benchmark_arguments, answer_benchmark_run, read_benchmark_run
from engine.cli.command_line import run_command
from engine.cli.question_options import add_group, add_option
from engine.cli.ranks import on_ranks
from engine.config import ExitConfig, GuidanceConfig, VideoConfig
from engine.engine_directory import read_manifest
from engine.evaluation.benchmarks import BENCHMARKS
from engine.evaluation.files import write_text
from engine.evaluation.run import Run
from engine.evaluation.summary import summarise, table
from engine.manifest import Manifest
from engine.options import BY_NAME

RESULTS = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is not given comes from the engine directory or the benchmark."""
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="ENGINE_DIR")
    add("--benchmark", choices=list(BENCHMARKS), required=True)
    add_benchmark_arguments(parser)
    add("--out", type=Path, metavar="FILE.jsonl", help=f"(default: {RESULTS}/BENCHMARK.jsonl)")
    add("--label", action="store_true", help="both models answer every question; nothing exits early")
    add_option(parser, BY_NAME["max_new_tokens"], "the benchmark's")
    add_option(parser, BY_NAME["seed"])
    add_option(parser, BY_NAME["draft"])
    add_option(parser, BY_NAME["speculate"])
    add("--json", action="store_true", help="print one JSON object, nothing else")
    add_group(parser, VideoConfig)
    add_group(parser, GuidanceConfig)
    add_group(parser, ExitConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    return run_command(
        lambda: evaluate(arguments), "interrupted; what was answered is kept, and the same command continues"
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    on_ranks(arguments, partial(lead, arguments), lambda manifest, started: read_run(arguments, manifest))


def lead(arguments: argparse.Namespace, peers: Peers, machine: Machine | None) -> None:
    """As rank 0, or alone. Raises EngineError."""
    manifest = read_manifest(arguments.engine)
    run = read_run(arguments, manifest)
    benchmark, out = run.benchmark, arguments.out or RESULTS / f"{run.benchmark.name}.jsonl"
    records = answer_benchmark_run(arguments, manifest, run, out, peers, machine)
    summary = summarise(benchmark, records) | {"out": str(out)}
    if benchmark.submission is not None:
        submission = out.with_suffix(f".submission{benchmark.submission.suffix}")
        write_text(submission, benchmark.submission.write(records))
        summary["submission"] = str(submission)
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print(table(summary))
        print(f"{len(records)} answers are in {summary.get('submission', out)} ({out.stat().st_size / 1e3:.0f} kB)")


def read_run(arguments: argparse.Namespace, manifest: Manifest) -> Run:
    """Raises EngineError."""
    return read_benchmark_run(arguments, manifest, arguments.benchmark, arguments.label)
