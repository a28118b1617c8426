"""Measure the engine and write docs/benchmarks.md. Run it on an otherwise idle machine."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from engine.cli.build_progress import build_progress
from engine.cli.command_line import CommandParser, positive, run_command
from tools.benchmark.bench import Bench
from tools.benchmark.machine import describe_machine, stamp
from tools.benchmark.questions import QUESTIONS
from tools.benchmark.report import Section, section_json, section_markdown, write_markdown
from tools.benchmark.sizes import SIZES

MACHINE = "machine"


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m tools.benchmark", description=__doc__)
    parser.add_argument("--only", type=questions, default=tuple(QUESTIONS), help="of " + ",".join(QUESTIONS))
    parser.add_argument("--loads", type=positive, help="fresh processes of each subject (default: each question's own)")
    parser.add_argument("--runs", type=positive, help="measured rounds per load (default: each question's own)")
    parser.add_argument("--threads", type=positive, default=2, help="of each engine (default: %(default)s)")
    about = "mid is for serving, tiny only tries the tool (default: %(default)s)"
    parser.add_argument("--size", choices=SIZES, default="1b", help=about)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--work", type=Path, help="where to make the temporary directory, about 30 GB at size 1b")
    return parser


def questions(text: str) -> tuple[str, ...]:
    """An argument such as `scores,int8`."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in QUESTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(QUESTIONS)}")
    return names


PARSER = make_parser()


def main(argv: list[str] | None = None) -> int:
    arguments = PARSER.parse_args(argv)
    return run_command(lambda: benchmark(arguments))


def benchmark(arguments: argparse.Namespace) -> None:
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    sections: dict[str, Section] = {}
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.work) as work,
        build_progress(quiet=False) as on_progress,
    ):
        size = SIZES[arguments.size]
        bench = Bench(size, Path(work), arguments.threads, arguments.loads, arguments.runs, on_progress)
        for name in arguments.only:
            sections[name] = QUESTIONS[name](bench)
            # After each question: an interruption keeps what was measured.
            write_report(arguments, sections)
    rows = [row for section in sections.values() for row in section.rows]
    passed = [row.passed() for row in rows]
    print(
        f"{arguments.out}: {len(sections)} questions, {passed.count(True)} targets met, "
        f"{passed.count(False)} missed, {sum(row.spread is None for row in rows)} not measured"
    )


def write_report(arguments: argparse.Namespace, sections: dict[str, Section]) -> None:
    machine = describe_machine(arguments.threads)
    models = SIZES[arguments.size].models
    blocks = {MACHINE: f"## Machine of the latest run\n\n{machine}"}
    for name, section in sections.items():
        command = f"python -m tools.benchmark --only {name}"
        for option in ("size", "threads", "loads", "runs"):
            value = getattr(arguments, option)
            if value != PARSER.get_default(option):
                command += f" --{option} {value}"
        blocks[name] = section_markdown(section, command, f"{stamp()}; random weights of the dimensions {models}")
    write_markdown(arguments.out, blocks, (MACHINE, *QUESTIONS))
    if arguments.json is not None:
        content = {"machine": machine, "sections": {name: section_json(part) for name, part in sections.items()}}
        arguments.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
