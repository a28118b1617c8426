"""Answer a file of questions, a line of JSON each, into a file of answers: OpenAI's batch files, or a short form.

A run that was interrupted, or killed, continues where it stopped. Started by mpiexec, each rank opens an engine.
"""

import argparse
import json
import socket
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.batch.answers import Answers, opened
from engine.batch.crew import Alone, Crew, Left, follow
from engine.batch.lines import Lines
from engine.batch.progress import Rate, batch_progress, describe
from engine.batch.share import Machine
from engine.batch.terms import Terms
from engine.batch.worker import Worker
from engine.cli.ask import import_mpi
from engine.cli.command_line import (
    add_running_arguments,
    add_serving_arguments,
    positive,
    read_device,
    run_command,
)
from engine.cli.describe import to_json
from engine.cli.question_options import add_request_defaults, read_options
from engine.cli.serve import EVERY, check_timeout, read_hosts
from engine.config import ExitConfig, ServingConfig
from engine.engine_directory import CONVERTER, read_manifest
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.options import QuestionConfig, all_over
from engine.runtime.answer import Answer
from engine.runtime.loading import gpus_of, kv_memory_here, resolve_device
from engine.runtime.pipeline import SglPipeline
from engine.runtime.tensor_parallel import identify, started_by_mpiexec
from engine.target import Device
from engine.units import size_text

NOT_REPORTED = ("keep_index", "tokens", "seconds", "picture")
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
    if not started_by_mpiexec():
        lead(arguments, Alone(), None)
        return
    world = import_mpi("engine.batch.world")
    with world.entered() as (link, machine):
        if isinstance(link, world.MpiPeers):
            lead(arguments, link, machine)
        else:
            serve(arguments, link, machine)


def lead(arguments: argparse.Namespace, peers: Any, machine: Machine | None) -> None:
    """As rank 0, or alone. Raises EngineError."""
    manifest, terms = read_terms(arguments)
    lines = Lines(arguments.input)
    settings = {
        "engine": {name: component.key for name, component in manifest.components.items()},
        "model": terms.model,
        "options": CONVERTER.unstructure(terms.default),
        "image hosts": None if terms.image_hosts is None else sorted(terms.image_hosts),
        "pictures at most": terms.max_pictures,
        "timeout": terms.timeout,
    }
    with opened(arguments.output, settings, not arguments.unordered) as answers:
        lines.check(answers.mark, arguments.output)
        terms = replace(terms, started=answers.started)
        before, rate = answers.tally.lines(), Rate(answers.tally.lines())
        with open_worker(arguments, manifest, terms, machine) as worker:
            crew = Crew(lines, answers, terms, worker, identify(manifest), peers)
            with batch_progress(arguments.json, rate) as on_progress:
                crew.run(on_progress)
        report(arguments, answers, crew, rate, before)


def serve(arguments: argparse.Namespace, leader: Any, machine: Machine) -> None:
    """As another rank; what is wrong, rank 0 says."""
    try:
        manifest, terms = read_terms(arguments)
        with open_worker(arguments, manifest, terms, machine) as worker:
            follow(leader, worker, identify(manifest), socket.gethostname())
    except EngineError as error:
        leader.send(Left(str(error)))
    except Exception as error:  # what it had goes to others, who may not have the same trouble
        traceback.print_exc()
        leader.send(Left(repr(error)))


@contextmanager
def open_worker(
    arguments: argparse.Namespace, manifest: Manifest, terms: Terms, machine: Machine | None
) -> Iterator[Worker]:
    """With its engine, on its share of the machine. Raises EngineError."""
    serving = {name: getattr(arguments, name, default) for name, default in vars(ServingConfig()).items()}
    # So many are asked at once, and none is refused.
    serving["max_waiting"] = 4 * arguments.max_running
    device = resolve_device(arguments.engine, manifest, read_device(arguments))
    if machine is not None:
        machine.take_cores()
        if device is Device.CUDA:
            machine.take_gpus(gpus_of(manifest, serving["small_apart"]))
        if serving["kv_memory"] is None and (memory := kv_memory_here(device)) is not None:
            serving["kv_memory"] = memory // machine.size
    with ExitStack() as stack:
        pipeline = stack.enter_context(
            SglPipeline.load(arguments.engine, arguments.threads, preload=False, device=device, **serving)
        )
        yield stack.enter_context(Worker(pipeline, terms, arguments.max_running))


def read_terms(arguments: argparse.Namespace) -> tuple[Manifest, Terms]:
    """Raises EngineError."""
    given = read_options(arguments)
    check_timeout(arguments.timeout)
    manifest = read_manifest(arguments.engine)
    return manifest, Terms(
        arguments.model_name or arguments.engine.resolve().name,
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
