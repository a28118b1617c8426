"""Questions per second of one and of two ranks with a thread each, and of one rank with two threads, in turns.

Ratios to one rank with one thread, of the same turn; the miniature pair answers.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cli.command_line import CommandParser, positive, run_command
from tools.batch.kills import Killed
from tools.batch.processes import sgl
from tools.batch.questions import build_engine, write_questions


@dataclass(frozen=True)
class Way:
    """Threads are each rank's."""

    ranks: int
    threads: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks of {self.threads} threads"


WAYS = (Way(1, 1), Way(1, 2), Way(2, 1))


def measure(work: Path, questions: int, rounds: int) -> dict[str, Any]:
    """Medians. Raises EngineError."""
    engine, path = build_engine(work / "engine"), write_questions(work / "questions.jsonl", questions)
    speeds: dict[Way, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            output = work / f"{turn} {way}.jsonl"
            words = ("batch", engine, "--input", path, "--output", output, "--threads", way.threads)
            run = Killed(sgl(*words, "--max-new-tokens", 8, ranks=way.ranks), output)
            speeds[way].append(run.finish()["lines_per_second"])
    first = speeds[WAYS[0]]
    return {
        "questions": questions,
        "rounds": rounds,
        "ratio": {
            str(way): round(statistics.median(speed / one for speed, one in zip(found, first, strict=True)), 2)
            for way, found in speeds.items()
        },
        "questions_per_second": {str(way): round(statistics.median(found), 1) for way, found in speeds.items()},
    }


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.batch.scaling", description=__doc__)
    parser.add_argument("--questions", type=positive, default=400, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        with tempfile.TemporaryDirectory(prefix="scaling of sgl batch ") as work:
            print(json.dumps(measure(Path(work), arguments.questions, arguments.rounds)))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
