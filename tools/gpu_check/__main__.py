"""Check kernels and engines on a GPU, once: right, and as fast as they should be. Without one, what needs none."""

import argparse
import json
import sys
from pathlib import Path

from engine.cli.command_line import run_command
from engine.errors import EngineError


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="only what needs no GPU; the rest is listed")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of checks, as in parity,attention")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"), help="the table (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="the figures (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: gpu_check(arguments))


def gpu_check(arguments: argparse.Namespace) -> None:
    try:
        from tools.gpu_check.checks import CHECKS, find_check
        from tools.gpu_check.machine import describe, no_gpu
    except ModuleNotFoundError as error:
        raise EngineError(f"{error.name} is not installed: pip install '.[dev]'") from error
    from tools.gpu_check.apart import run_apart
    from tools.gpu_check.check import run_check
    from tools.gpu_check.report import as_json, markdown

    names = [check.name for check in CHECKS]
    if unknown := [name for name in arguments.only or () if name not in names]:
        raise EngineError(f"{unknown[0]} is no check; there are {', '.join(names)}")
    absent, machine = no_gpu(arguments.dry_run), describe()
    if absent and not arguments.dry_run:
        raise EngineError(f"{absent}; --dry-run does what needs none")
    results = {}
    for check in CHECKS:
        if arguments.only and check.name not in arguments.only:
            continue
        print(f"{check.name} …", file=sys.stderr)
        is_apart = check.needs_gpu and not absent
        results[check] = list(run_apart(check, find_check) if is_apart else run_check(check, absent))
        command = "python -m tools.gpu_check" + (" --dry-run" if arguments.dry_run else "")
        # After each check: an interruption keeps what was measured.
        arguments.out.write_text(markdown(results, machine, command), encoding="utf-8")
        arguments.json.write_text(json.dumps(as_json(results, machine), indent=2), encoding="utf-8")
    passed = [result.passed() for rows in results.values() for result in rows]
    print(
        f"{arguments.out}, {arguments.json}: {len(passed)} lines, {passed.count(True)} targets met, "
        f"{passed.count(False)} missed or failed, {passed.count(None)} without a target or not run"
    )


if __name__ == "__main__":
    sys.exit(main())
