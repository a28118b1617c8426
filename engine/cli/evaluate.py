"""Run a benchmark through an engine directory: a line of JSON for each question, figures at the end.

A run that was interrupted, or killed, continues where it stopped. Started by mpiexec, each rank opens an engine.
`--label` lets both models answer every question, which `sgl calibrate` needs.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from engine.batch.crew import Peers
from engine.batch.progress import batch_progress
from engine.batch.share import Machine
from engine.cli.command_line import add_running_arguments, add_serving_arguments, positive, run_command
from engine.cli.question_options import add_group, add_option, read_options
from engine.cli.ranks import on_ranks, open_worker
from engine.config import NEVER_EXITS, ExitConfig, GuidanceConfig, SamplingConfig
from engine.engine_directory import read_manifest, write_json
from engine.errors import RequestError
from engine.evaluation.benchmarks import BENCHMARKS, by_name
from engine.evaluation.run import Run, Way, answer_run
from engine.evaluation.summary import summarise, table
from engine.manifest import Manifest
from engine.options import BY_NAME, QuestionConfig, all_over, refuse_unread

RESULTS = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is not given comes from the engine directory or the benchmark."""
    add = parser.add_argument
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "files in --data, as published:\n" + "\n".join(
        f"  {name:14} {benchmark.files}" for name, benchmark in BENCHMARKS.items()
    )
    add("--engine", type=Path, required=True, metavar="ENGINE_DIR")
    add("--benchmark", choices=list(BENCHMARKS), required=True)
    add("--data", type=Path, default=Path(), metavar="DIR", help="the benchmark's published files")
    add("--out", type=Path, metavar="FILE.jsonl", help=f"(default: {RESULTS}/BENCHMARK.jsonl)")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--label", action="store_true", help="both models answer every question; nothing exits early")
    add_option(parser, BY_NAME["max_new_tokens"], "the benchmark's")
    add_option(parser, BY_NAME["seed"])
    add_option(parser, BY_NAME["draft"])
    add_running_arguments(parser)
    add_serving_arguments(parser, refuses=False)
    add("--json", action="store_true", help="print one JSON object, nothing else")
    add_group(parser, GuidanceConfig)
    add_group(parser, ExitConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    return run_command(
        lambda: evaluate(arguments), "interrupted; what was answered is kept, and the same command continues"
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    on_ranks(arguments, partial(lead, arguments), lambda manifest, started: read_run_of(arguments, manifest))


def lead(arguments: argparse.Namespace, peers: Peers, machine: Machine | None) -> None:
    """As rank 0, or alone. Raises EngineError."""
    manifest = read_manifest(arguments.engine)
    run = read_run_of(arguments, manifest)
    benchmark, out = run.benchmark, arguments.out or RESULTS / f"{run.benchmark.name}.jsonl"
    records = answer_run(
        run,
        manifest,
        out,
        peers,
        lambda: open_worker(arguments, manifest, run, machine),
        lambda rate: batch_progress(arguments.json, rate, benchmark.name),
    )
    summary = summarise(benchmark, records) | {"out": str(out)}
    if benchmark.submission is not None:
        submission = out.with_suffix(".submission.json")
        write_json(submission, benchmark.submission({record.id: record.prediction for record in records}))
        summary["submission"] = str(submission)
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print(table(summary))
        print(f"{len(records)} answers are in {summary.get('submission', out)} ({out.stat().st_size / 1e3:.0f} kB)")


def read_run_of(arguments: argparse.Namespace, manifest: Manifest) -> Run:
    """What the command asks for. Raises EngineError."""
    given, benchmark = read_options(arguments), by_name(arguments.benchmark)
    sampling = SamplingConfig(max_new_tokens=benchmark.max_new_tokens)
    asked = all_over(QuestionConfig(guidance=manifest.guidance, exit=manifest.exit, sampling=sampling), given)
    if arguments.label:
        if given.keys() & {"no_early_exit", "exit_threshold"}:
            raise RequestError("--label lets nothing exit early; leave out --no-early-exit and --exit-threshold")
        asked = replace(asked, exit=replace(asked.exit, exit_threshold=NEVER_EXITS))
    refuse_unread(given, asked)
    sampling = asked.sampling
    way = Way(asked.guidance, asked.exit, sampling.max_new_tokens, sampling.seed, sampling.draft)
    examples = benchmark.load(arguments.data)
    return Run(benchmark, examples, way, min(arguments.limit or len(examples), len(examples)))
