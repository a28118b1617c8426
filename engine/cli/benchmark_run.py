"""A benchmark's questions through an engine, for the commands that need the records of all of them."""

import argparse
from dataclasses import replace
from pathlib import Path

from engine.batch.crew import Peers
from engine.batch.progress import batch_progress
from engine.batch.share import Machine
from engine.cli.command_line import add_running_arguments, add_serving_arguments, positive
from engine.cli.question_options import read_options
from engine.cli.ranks import open_worker
from engine.config import NEVER_EXITS, SamplingConfig
from engine.errors import RequestError
from engine.evaluation.benchmarks import BENCHMARKS, by_name
from engine.evaluation.record import Record
from engine.evaluation.run import Run, Way, answer_run
from engine.manifest import Manifest
from engine.options import QuestionConfig, all_over, refuse_unread


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """All but which one. `json`, too, is read here."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "files in --data, as published:\n" + "\n".join(
        f"  {name:14} {benchmark.files}" for name, benchmark in BENCHMARKS.items()
    )
    add = parser.add_argument
    add("--data", type=Path, default=Path(), metavar="DIR", help="the benchmark's published files")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add_running_arguments(parser)
    add_serving_arguments(parser, refuses=False)


def read_benchmark_run(arguments: argparse.Namespace, manifest: Manifest, name: str, is_labelled: bool) -> Run:
    """What is asked, and how; labelled, both models answer everything. Raises EngineError."""
    given, benchmark = read_options(arguments), by_name(name)
    sampling = SamplingConfig(max_new_tokens=benchmark.max_new_tokens)
    asked = all_over(QuestionConfig(guidance=manifest.guidance, exit=manifest.exit, sampling=sampling), given)
    if is_labelled:
        if given.keys() & {"no_early_exit", "exit_threshold"}:
            raise RequestError("--label lets nothing exit early; leave out --no-early-exit and --exit-threshold")
        asked = replace(asked, exit=replace(asked.exit, enabled=True, exit_threshold=NEVER_EXITS))
    refuse_unread(given, asked)
    sampling = asked.sampling
    said = sampling.max_new_tokens, sampling.seed, sampling.draft
    way = Way(asked.guidance, asked.exit, *said, asked.video, sampling.speculate)
    examples = benchmark.load(arguments.data)
    return Run(benchmark, examples, way, min(arguments.limit or len(examples), len(examples)))


def answer_benchmark_run(
    arguments: argparse.Namespace, manifest: Manifest, run: Run, out: Path, peers: Peers, machine: Machine | None
) -> list[Record]:
    """As rank 0, or alone -> the records of all of it. Raises EngineError."""
    return answer_run(
        run,
        manifest,
        out,
        peers,
        lambda: open_worker(arguments, manifest, run, machine),
        lambda rate: batch_progress(arguments.json, rate, run.benchmark.name),
    )
