"""Answer a file of questions, a line of JSON each, into a file of answers: OpenAI's batch files, or a short form.

A run that was interrupted, or killed, continues where it stopped. Started by mpiexec, each rank opens an engine.
"""

import argparse
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.batch.answers import Answers, journal_of, opened
from engine.batch.crew import Crew, Peers
from engine.batch.lines import Lines
from engine.batch.progress import Rate, batch_progress, describe
from engine.batch.request import LineReader
from engine.batch.share import Machine
from engine.batch.terms import Terms, versions
from engine.cli.command_line import add_running_arguments, add_serving_arguments, positive, run_command
from engine.cli.describe import to_json
from engine.cli.question_options import add_request_defaults, read_options
from engine.cli.ranks import on_ranks, open_worker
from engine.cli.serve import EVERY, check_timeout, read_hosts
from engine.config import ExitConfig
from engine.engine_directory import read_manifest
from engine.errors import RequestError
from engine.manifest import Manifest
from engine.options import QuestionConfig, all_over
from engine.runtime.answer import Answer
from engine.runtime.tensor_parallel import identify
from engine.units import size_text

NOT_REPORTED = ("keep_index", "tokens", "seconds", "picture", "reuse")
"""Of what `sgl ask --json` says of an answer: long, another one each time, or said where it was asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a line may say, too, stands in a group of its own."""
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="QUESTIONS.jsonl", help="pictures are relative to where it lies")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="ANSWERS.jsonl",
        help="beside it, .journal is what a run continues",
    )
    add("--unordered", action="store_true", help="write answers as they come (default: in the order of the questions)")
    add("--model-name", metavar="NAME", help="what requests call the model (default: the directory's name)")
    add("--max-pictures", type=positive, default=Terms.max_pictures, help="of a question (default: %(default)s)")
    add(
        "--image-hosts",
        metavar="HOST,…",
        help=f"fetch http(s) pictures from these hosts, {EVERY} from every public one (default: from none)",
    )
    add("--json", action="store_true", help="print one JSON object, nothing else")
    add_running_arguments(parser)
    add_serving_arguments(parser, refuses=False)
    add_request_defaults(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer the file, and return the exit status."""
    return run_command(
        lambda: batch(arguments), "interrupted; what was answered is kept, and the same command continues"
    )


def batch(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""

    def make_reader(manifest: Manifest, started: int) -> LineReader:
        return LineReader(replace(read_terms(arguments, manifest), started=started))

    on_ranks(arguments, partial(lead, arguments), make_reader)


def lead(arguments: argparse.Namespace, peers: Peers, machine: Machine | None) -> None:
    """As rank 0, or alone. Raises EngineError."""
    manifest = read_manifest(arguments.engine)
    terms, lines = read_terms(arguments, manifest), Lines(arguments.input)
    keys = {name: component.key for name, component in manifest.components.items()}
    settings = {"engine": keys, "versions": versions(manifest)} | LineReader(terms).agreed()
    refuse_overwriting(arguments.input, arguments.output)
    with opened(arguments.output, settings, not arguments.unordered) as answers:
        lines.check(answers.mark, arguments.output)
        peers.begin(answers.started)
        reader = LineReader(replace(terms, started=answers.started))
        before, rate = answers.tally.lines(), Rate(answers.tally.lines())
        with open_worker(arguments, manifest, reader, machine) as worker:
            crew = Crew(lines, answers, reader, worker, identify(manifest), peers)
            with batch_progress(arguments.json, rate) as on_progress:
                crew.run(on_progress)
        report(arguments, answers, crew, rate, before)


def refuse_overwriting(path: Path, output: Path) -> None:
    """Raises RequestError."""
    for written in (output, journal_of(output)):
        if os.path.exists(written) and os.path.samefile(written, path):
            raise RequestError(f"{path} holds the questions, and {written} would be written; name another output")


def read_terms(arguments: argparse.Namespace, manifest: Manifest) -> Terms:
    """Raises EngineError."""
    given = read_options(arguments)
    check_timeout(arguments.timeout)
    return Terms(
        arguments.model_name or os.fsencode(arguments.engine.resolve().name).decode(errors="replace"),
        arguments.input.absolute(),
        describe_answer,
        all_over(QuestionConfig(guidance=manifest.guidance, exit=manifest.exit), given),
        read_hosts(arguments.image_hosts),
        arguments.max_pictures,
        arguments.timeout,
    )


def describe_answer(answer: Answer, exit: ExitConfig) -> dict[str, Any]:
    return {name: value for name, value in to_json(answer, exit).items() if name not in NOT_REPORTED}


def report(arguments: argparse.Namespace, answers: Answers, crew: Crew, rate: Rate, before: int) -> None:
    """The last line."""
    tally, now = answers.tally, answers.tally.lines() - before
    if arguments.json:
        summary = tally.to_json() | {
            "answered_before": before,
            "seconds": rate.seconds(),
            "lines_per_second": rate(tally),
            "hand_out_seconds_per_line": crew.seconds / now if now else None,
            "ranks": crew.ranks(),
            "output": str(arguments.output),
        }
        print(json.dumps(summary, ensure_ascii=False))
        return
    earlier = f", {before} of them before" if before else ""
    print(
        f"{tally.answers} answers and {tally.errors} errors{earlier} are in {arguments.output} "
        f"({size_text(answers.size())}): {describe(replace(tally, errors=0), rate(tally))}"
    )
