"""Give mutated files and requests of strangers to the engine, and keep the smallest that it does not withstand."""

import argparse
import json
import random
import resource
import sys
import time
from pathlib import Path

from engine.cli.command_line import CommandParser, positive, run_command, size
from engine.units import size_text
from tools.fuzz.driver import SECONDS, Failure, attempt, fuzz, shrink
from tools.fuzz.kind import Case, Kind, kinds

MEMORY = 8 << 30
"""Of addresses, for the whole process; what takes more ends in a MemoryError, which is a fault."""
FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--minutes", type=float, default=1.0, metavar="N", help="for all kinds together (default: %(default)s)")
    add("--kind", choices=list(kinds()), action="append", help="only this one; may be given again (default: all)")
    add("--seed", type=int, help="of the first case of each kind (default: chance)")
    add("--seconds", type=float, default=SECONDS, help="a case that takes longer hangs (default: %(default)s)")
    add("--memory", type=size, default=MEMORY, help=f"for the process (default: {size_text(MEMORY)})")
    add("--out", type=Path, default=Path("fuzz-failures"), help="directory of failing cases (default: %(default)s)")
    add("--repeat", type=Path, metavar="FILE", help="run a case that was kept there, of the one --kind, and no more")
    add("--stop-after", type=positive, default=20, help="different faults (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 1 if anything failed."""
    resource.setrlimit(resource.RLIMIT_AS, (arguments.memory, resource.RLIM_INFINITY))
    chosen = {name: kind for name, kind in kinds().items() if not arguments.kind or name in arguments.kind}
    if arguments.repeat is not None:
        return repeat(next(iter(chosen.values())), arguments.repeat, arguments.seconds)
    first = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    found: dict[str, Failure] = {}
    counts = dict.fromkeys(chosen, 0)
    outcomes = {name: fuzz(kind, iter(range(first, sys.maxsize)), arguments.seconds) for name, kind in chosen.items()}
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end and len(found) < arguments.stop_after:
        for name, outcome in outcomes.items():
            counts[name] += 1
            failure = next(outcome)
            if failure is not None and failure.place not in found:
                found[failure.place] = failure
                path = keep(arguments.out, shrink(chosen[name], failure, arguments.seconds))
                print(f"{name}, seed {failure.seed}: {failure.place}; kept in {path}", file=sys.stderr)
    cases = ", ".join(f"{count} {name}" for name, count in counts.items())
    kept = f"{len(found)} faults, the smallest case of each in {arguments.out}" if found else "no fault"
    print(f"{cases} from seed {first} on: {kept}")
    return FAILED if found else 0


def keep(directory: Path, failure: Failure) -> Path:
    """Write a case as it is, or as JSON, with what it came to beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{failure.kind}-{failure.seed}"
    (directory / f"{name}.txt").write_text(failure.report, encoding="utf-8", errors="backslashreplace")
    if isinstance(failure.case, bytes):
        path = directory / f"{name}.bin"
        path.write_bytes(failure.case)
    else:
        path = directory / f"{name}.json"
        path.write_text(json.dumps(failure.case, indent=1), encoding="utf-8")
    return path


def repeat(kind: Kind, path: Path, seconds: float) -> int:
    """Run one case that `keep` wrote."""
    case: Case = path.read_bytes() if path.suffix == ".bin" else json.loads(path.read_text(encoding="utf-8"))
    failure = attempt(kind, case, seconds)
    print("no fault" if failure is None else failure.report)
    return 0 if failure is None else FAILED


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.fuzz", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.repeat is not None and len(arguments.kind or ()) != 1:
        parser.error("--repeat runs a case of one kind; name it with --kind")
    status = 0

    def command() -> None:
        nonlocal status
        status = run(arguments)

    return run_command(command) or status


if __name__ == "__main__":
    sys.exit(main())
