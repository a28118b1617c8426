"""Kill `sgl batch` again and again, on several numbers of ranks: its answers are those of a run that was left alone.

Questions of the miniature pair, of both forms. Half of the kills hit one process of the job, half all of them; some at
a moment of starting, the others at an answer.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.cli.command_line import CommandParser, numbers, positive, run_command
from engine.errors import EngineError
from tools.batch.processes import (
    PATIENCE_SECONDS,
    Watched,
    answers_in,
    decodes,
    descendants,
    launches,
    sgl,
    started,
    wait_until_gone,
)
from tools.batch.questions import build_engine, write_questions

CREATED = '"created": '
STARTING = 0.2
"""Share of the kills that come within the first seconds."""
FIRST_SECONDS = 3.0


@dataclass
class Killed:
    """A run that is killed again and again. kills: what was killed, holding how many answers."""

    command: Sequence[str]
    output: Path
    kills: list[tuple[str, int]] = field(default_factory=list)

    def kill_once(self, chance: random.Random, most: int) -> bool:
        """Start it, and kill it somewhere within so many more answers; whether it was still running then."""
        watched = Watched(self.output)
        wanted = watched.answers() + chance.randint(1, most)
        moment = chance.uniform(0, FIRST_SECONDS) if chance.random() < STARTING else PATIENCE_SECONDS
        with started(self.command) as process:
            end = time.monotonic() + moment
            while process.poll() is None and watched.answers() < wanted and time.monotonic() < end:
                time.sleep(0.002)
            there = descendants(process.pid)
            victims = choose(process.pid, there, chance)
            was_running = process.poll() is None
            for victim in victims:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            wait_until_gone(process, there)
        if was_running:
            self.kills.append(("everything" if len(victims) > 1 else "one", watched.answers()))
        return was_running

    def finish(self) -> dict[str, Any]:
        """Let it run to its end -> its summary. Raises EngineError."""
        done = subprocess.run([*self.command, "--json"], capture_output=True, text=True)
        if done.returncode:
            raise EngineError(f"a run that was left alone ended with {done.returncode}: {done.stderr}")
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary


def choose(process: int, there: Sequence[int], chance: random.Random) -> list[int]:
    """One rank of a job, or all of its processes; without mpiexec alone its ranks would go on to the end."""
    needed = [process, *(child for child in there if not decodes(child))]
    ranks = [one for one in needed if not launches(one)]
    return needed if chance.random() < 0.5 or not ranks else [chance.choice(ranks)]


def without_time(output: Path) -> list[str]:
    """The answers; of OpenAI's form without when the run began, which is the same in all of them."""
    times, lines = set[str](), []
    for line in output.read_text(encoding="utf-8").splitlines():
        head, created, tail = line.partition(CREATED)
        if created:
            moment, _, tail = tail.partition(",")
            times.add(moment)
        lines.append(head + tail)
    assert len(times) <= 1, f"{output} has answers of several times: {sorted(times)}"
    return lines


def compare(work: Path, questions: int, kills: int, ranks: Sequence[int]) -> Iterator[str]:
    """What came of it, a sentence for each number of ranks. Raises EngineError where an answer differs."""
    engine, path = build_engine(work / "engine"), write_questions(work / "questions.jsonl", questions)

    def run(name: str, count: int) -> Killed:
        output = work / f"{name}.jsonl"
        words = ("batch", engine, "--input", path, "--output", output, "--threads", 1, "--max-new-tokens", 8)
        return Killed(sgl(*words, ranks=count), output)

    alone = run("undisturbed", 1)
    alone.finish()
    expected = without_time(alone.output)
    for count in ranks:
        killed, chance = run(f"killed on {count}", count), random.Random(count)
        for left in range(kills, 0, -1):
            most = 2 * (questions - answers_in(killed.output)) // (left + 2)
            if not killed.kill_once(chance, max(1, most)):
                break
        before, summary = answers_in(killed.output), killed.finish()
        if (found := without_time(killed.output)) != expected:
            differ = [place for place, pair in enumerate(zip(found, expected, strict=False), 1) if pair[0] != pair[1]]
            raise EngineError(
                f"on {count} ranks {len(found)} answers came of {len(expected)}, line {differ[:1]} is another"
            )
        yield (
            f"{count} ranks: killed {len(killed.kills)} times, the last with {before} of {questions} answered; "
            f"{summary['answered_before']} were not asked again, and all {len(found)} lines are those of the "
            "undisturbed run"
        )


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.batch.kills", description=__doc__)
    add = parser.add_argument
    add("--questions", type=positive, default=2000, help="(default: %(default)s)")
    add("--kills", type=positive, default=20, help="(default: %(default)s)")
    add("--ranks", type=numbers, default=(1, 2, 4), metavar="N,…", help="(default: 1,2,4)")
    add("--work", type=Path, metavar="DIR", help="to keep: the same command continues there (default: a temporary one)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        with tempfile.TemporaryDirectory(prefix="kills of sgl batch ") as folder:
            work = arguments.work or Path(folder)
            work.mkdir(parents=True, exist_ok=True)
            for sentence in compare(work, arguments.questions, arguments.kills, arguments.ranks):
                print(sentence, flush=True)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
