"""What handing out costs, with engines that answer at once: time and memory of rank 0 over a long file, first answer.

Started by mpiexec, ranks but 0 answer, and the time of the messages that are really sent is measured, too.
"""

import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.batch.answers import opened
from engine.batch.crew import Alone, Crew, Joined, Peers, Said, Work, follow
from engine.batch.lines import Lines
from engine.batch.request import LineReader
from engine.batch.tally import Tally
from engine.batch.terms import Terms
from engine.batch.worker import Answered, Task
from engine.cli.command_line import CommandParser, positive, run_command
from engine.runtime.tensor_parallel import Identity, started_by_mpiexec

IDENTITY = Identity("simulated", {}, "simulated")
AGREED = LineReader(Terms("pair", Path(), lambda answer, exit: {})).agreed()
CAPACITY = 32
"""Of a rank, as `sgl batch` has it by default."""
SPEAKERS = 50
"""Simulated ranks that are heard at once, at most."""
ROUND_TRIPS = 2000
MESSAGES = (1, 8, 32)
"""Questions in one: as one is answered, some, and all that a rank may have."""
QUESTION = b'{"id": 1, "image": "pictures/1.jpg", "question": "What is number 1 of them?"}'
BYTES = 400
"""Of a short line's answer."""


@dataclass
class Instant:
    """An `Asker` that answers so much of what it has whenever it is looked at, in any order. is_idle: nothing, ever."""

    capacity: int = CAPACITY
    is_idle: bool = False
    most: int = 16
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    tasks: dict[int, Task] = field(default_factory=dict)

    def ask(self, tasks: Iterable[Task]) -> None:
        self.tasks |= {task.place: task for task in tasks}

    def cancel(self, places: Iterable[int]) -> None:
        for place in places:
            self.tasks.pop(place, None)

    def wait(self, seconds: float | None) -> list[Answered]:
        if self.is_idle or not self.tasks:
            time.sleep(seconds or 0)
            return []
        places = self.chance.sample([*self.tasks], min(len(self.tasks), self.most))
        return [answer_to(self.tasks.pop(place)) for place in places]


def answer_to(task: Task) -> Answered:
    said = json.dumps({"id": task.place, "text": "x" * (BYTES - 40)}).encode()
    return Answered(task.place, said, Tally(answers=1, visual_tokens=4, kept=1, generated=2))


class SimulatedPeers:
    """`Peers` in this process, of which each says something now and then. seconds: of the processor, spent in here."""

    def __init__(self, size: int) -> None:
        self.size, self.seconds = size, 0.0
        self._askers = [Instant(most=1, chance=random.Random(rank)) for rank in range(1, size + 1)]
        self._chance = random.Random(0)
        self._has_joined = False

    def begin(self, started: int) -> None: ...

    def lose(self, rank: int) -> None: ...

    def heard(self) -> list[tuple[int, Said]]:
        start = time.thread_time()
        heard: list[tuple[int, Said]]
        if not self._has_joined:
            self._has_joined = True
            heard = [(rank, Joined(CAPACITY, IDENTITY, "here", AGREED)) for rank in range(1, self.size + 1)]
        else:
            busy = [rank for rank, asker in enumerate(self._askers, 1) if asker.tasks]
            ranks = self._chance.sample(busy, min(len(busy), SPEAKERS))
            heard = [(rank, tuple(self._askers[rank - 1].wait(0))) for rank in ranks]
        self.seconds += time.thread_time() - start
        return heard

    def send(self, rank: int, work: Work) -> None:
        start = time.thread_time()
        self._askers[rank - 1].ask(work.tasks)
        self._askers[rank - 1].cancel(work.cancelled)
        self.seconds += time.thread_time() - start


def write_lines(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(
            f'{{"id": {place}, "image": "pictures/{place // 5}.jpg", "question": "What is number {place} of them?"}}\n'
            for place in range(count)
        )


@dataclass
class Watch:
    """What is seen of a run as it goes. peaks: in MiB, at each tenth of the lines."""

    count: int
    start: float = field(default_factory=time.perf_counter)
    first: float | None = None
    peaks: list[float] = field(default_factory=list)

    def __call__(self, tally: Tally, lines: int) -> None:
        if self.first is None and tally.answers:
            self.first = time.perf_counter() - self.start
        if tally.answers >= self.count * (len(self.peaks) + 1) // 10:
            self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def hand_out(count: int, peers: Peers) -> dict[str, Any]:
    """As rank 0. Raises EngineError."""
    with tempfile.TemporaryDirectory(prefix="hand out ") as folder:
        path, output = Path(folder) / "questions.jsonl", Path(folder) / "answers.jsonl"
        write_lines(path, count)
        reader = LineReader(Terms("pair", path, lambda answer, exit: {}))
        watch, busy = Watch(count), time.process_time()
        worker = Instant(is_idle=peers.size > 0)
        # In order, what rank 0 never answers would hold up all others.
        with opened(output, {}, is_ordered=not worker.is_idle) as answers:
            crew = Crew(Lines(path), answers, reader, worker, IDENTITY, peers)
            crew.run(watch)
        seconds, busy = time.perf_counter() - watch.start, time.process_time() - busy
        if isinstance(peers, SimulatedPeers):
            busy -= peers.seconds
        assert watch.first is not None
        with output.open(encoding="utf-8") as file:
            places = [json.loads(line)["id"] for line in file]
        assert (sorted(places) if worker.is_idle else places) == [*range(count)]
    return {
        "lines": count,
        "first_answer_seconds": round(watch.first, 4),
        "seconds": round(seconds, 2),
        "rank_0_microseconds_per_line": round(1e6 * busy / count, 1),
        "hand_out_microseconds_per_line": round(1e6 * crew.seconds / count, 1),
        "peak_memory_mib": [round(peak, 1) for peak in watch.peaks],
    }


def ping_pong(link: Any, rank: int, questions: int) -> dict[str, float]:
    """Work of so many questions to rank 1 and its answers back -> medians in microseconds: the processor's for sending
    and for receiving one message, and the clock's for there and back."""
    work = Work(tuple(Task(place, QUESTION) for place in range(questions)))
    answers = tuple(map(answer_to, work.tasks))
    times: dict[str, list[float]] = {"send": [], "receive": [], "round_trip": []}
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        if rank == 0:
            times["send"].append(_processor(lambda: link.post(1, work))[0])
        while (found := _processor(link.next))[1] is None:
            time.sleep(0)
        times["receive"].append(found[0])
        if rank:
            link.post(0, answers)
        times["round_trip"].append(time.perf_counter() - start)
    medians = {name: round(1e6 * statistics.median(values), 1) for name, values in times.items() if values}
    return {"questions": questions} | medians


def _processor(do: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this thread, and what came of it."""
    start = time.thread_time()
    found = do()
    return time.thread_time() - start, found


def measure(count: int, ranks: int) -> None:
    """Raises EngineError."""
    if not started_by_mpiexec():
        peers = SimulatedPeers(ranks - 1) if ranks > 1 else Alone()
        print(json.dumps({"simulated_ranks": ranks} | hand_out(count, peers)))
        return
    from mpi4py import MPI

    from engine.batch.world import Link, MpiPeers, entered

    with entered() as (world, _):
        rank, link = MPI.COMM_WORLD.rank, Link(MPI.COMM_WORLD.Dup())
        messages = [ping_pong(link, rank, questions) for questions in MESSAGES] if rank < 2 else []
        if not isinstance(world, MpiPeers):
            if world.begin() is not None:
                follow(world, Instant(), IDENTITY, "here", AGREED)
            return
        world.begin(0)
        print(json.dumps({"ranks": world.size + 1, "messages": messages} | hand_out(count, world)))


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.batch.hand_out", description=__doc__)
    parser.add_argument("--lines", type=positive, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--ranks", type=positive, default=1, help="simulated ones, without mpiexec (default: 1)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: measure(arguments.lines, arguments.ranks))


if __name__ == "__main__":
    sys.exit(main())
