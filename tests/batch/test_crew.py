"""Rank 0 and others without engines: every line is answered in its place, whoever dies, dawdles or starts again."""

import json
import random
import resource
from collections.abc import Iterable
from pathlib import Path

import pytest

from engine.batch.answers import Answers, opened
from engine.batch.crew import Alone, Crew, Joined, Said
from engine.batch.lines import Line, Lines
from engine.batch.request import LineReader
from engine.batch.tally import Tally
from engine.batch.terms import Terms
from engine.batch.worker import Answered, Task
from engine.errors import EngineError, RequestError
from engine.runtime.tensor_parallel import Identity
from tests.batch.conftest import Write
from tests.batch.simulation import AGREED, IDENTITY, ONE, Died, FakeAsker, FakePeers, reply_of

PICTURES = 7


def question(place: int) -> dict[str, object]:
    return {"image": f"{place // 5 % PICTURES}.png", "question": f"{place}?"}


def crew_of(terms: Terms, answers: Answers, asker: FakeAsker, peers: FakePeers | Alone) -> Crew:
    lines = Lines(terms.path)
    lines.check(answers.mark, answers.path)
    return Crew(lines, answers, LineReader(terms), asker, IDENTITY, peers)


def expected(count: int) -> list[dict[str, str]]:
    return [{"answer": f"{place}?"} for place in range(count)]


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_every_line_is_answered_in_its_place(terms: Terms, write: Write, folder: Path, ranks: int, seed: int) -> None:
    """Blank lines ask nothing; some ranks die with questions, some say nothing, some are slow."""
    chance, count = random.Random(seed), 150
    write([line for place in range(count) for line in [question(place)] + [" "] * (place % 4 == 0)])
    askers = {rank: FakeAsker(chance.randint(1, 9), random.Random(seed + rank)) for rank in range(ranks)}
    peers = FakePeers({rank: asker for rank, asker in askers.items() if rank}, chance)
    for rank in peers.askers:
        match chance.randint(0, 3):
            case 1:
                peers.dying[rank] = chance.randint(0, 30)
            case 2:
                peers.silent[rank] = chance.randint(0, 30)
            case 3:
                peers.slow.add(rank)
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew = crew_of(terms, answers, askers[0], peers if ranks > 1 else Alone())
        crew.run()
        assert answers.tally.answers == count
    assert read(folder / "answers.jsonl") == expected(count)
    asked = sum(len(asker.log) for asker in askers.values())
    assert asked >= count
    if ranks == 1:
        assert asked == count
    assert all(asker.most <= 2 * asker.capacity for asker in askers.values())


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_killed_run_asks_nothing_twice(terms: Terms, write: Write, folder: Path, is_ordered: bool) -> None:
    """What was in flight when it died is asked again, what was answered is not."""
    count, path = 200, folder / "answers.jsonl"
    write([question(place) for place in range(count)])
    chance, answered = random.Random(1), set()
    for _ in range(30):
        asker = FakeAsker(6, chance, dies_after=chance.randint(1, 20))
        with opened(path, {}, is_ordered) as answers:
            held = {place for place in range(count) if answers.holds(place)}
            crew = crew_of(terms, answers, asker, Alone())
            try:
                crew.run()
            except Died:
                continue
            finally:
                assert not held & set(asker.log)
                answered |= {place for place in range(count) if answers.holds(place)}
                assert held <= answered
            break
    assert (read(path) if is_ordered else sorted(read(path), key=lambda line: int(line["answer"][:-1]))) == expected(
        count
    )


def test_questions_about_a_picture_go_to_one_rank(terms: Terms, write: Write, folder: Path) -> None:
    """As long as nobody would have nothing to do."""
    count, ranks = 2000, 4
    write([{"image": f"{place % 97}.png", "question": f"{place}?"} for place in range(count)])
    askers = {rank: FakeAsker(8, random.Random(rank)) for rank in range(ranks)}
    peers = FakePeers({rank: asker for rank, asker in askers.items() if rank}, random.Random(9))
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew_of(terms, answers, askers[0], peers).run()
    pairs = {(rank, place % 97) for rank, asker in askers.items() for place in asker.log}
    assert len(pairs) < 2 * 97  # of 4 * 97
    assert min(len(asker.log) for asker in askers.values()) > count / ranks / 3
    assert read(folder / "answers.jsonl") == expected(count)


def test_a_slow_rank_does_not_hold_the_end(terms: Terms, write: Write, folder: Path) -> None:
    """It may never answer what it has: others get copies of it."""
    write([question(place) for place in range(60)])
    stuck = FakeAsker(16, random.Random(2))
    peers = FakePeers({1: stuck}, random.Random(3))
    peers.silent[1] = 1
    askers = FakeAsker(16, random.Random(1))
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew_of(terms, answers, askers, peers).run()
    assert read(folder / "answers.jsonl") == expected(60)
    lost = set(stuck.log) - set(stuck.answered)
    assert lost <= set(askers.log)
    assert len(askers.log) == len(set(askers.log))


def test_a_rank_that_is_beaten_is_told(terms: Terms, write: Write, folder: Path) -> None:
    write([question(place) for place in range(40)])
    slow = FakeAsker(16, random.Random(2))
    peers = FakePeers({1: slow}, random.Random(3))
    peers.slow.add(1)
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew_of(terms, answers, FakeAsker(16, random.Random(1)), peers).run()
        assert answers.tally.answers == 40
    peers.slow.clear()
    for _ in range(40):
        peers.heard()
    assert not slow.tasks


def test_ranks_of_other_engines_are_refused(terms: Terms, write: Write, folder: Path) -> None:
    write([question(place) for place in range(9)])

    class Other(FakePeers):
        def heard(self) -> list[tuple[int, Said]]:
            return [(1, Joined(4, Identity("1", {}, "others"), "node7", AGREED))]

    peers = Other({1: FakeAsker(4, random.Random(0))}, random.Random(0))
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew = crew_of(terms, answers, FakeAsker(4, random.Random(0)), peers)
        said = (
            "the engine directory of rank 1 on node7 has other fingerprints than the engine that was opened; give all"
        )
        with pytest.raises(EngineError, match=said):
            crew.run()


def test_questions_that_were_changed_are_refused(terms: Terms, write: Write, folder: Path) -> None:
    """More of them may come at the end."""
    path = folder / "answers.jsonl"
    for count in (20, 30):
        write([question(place) for place in range(count)])
        with opened(path, {}, True) as answers:
            crew_of(terms, answers, FakeAsker(4, random.Random(0)), Alone()).run()
        assert read(path) == expected(count)
    write([question(place + 1) for place in range(30)])
    with (
        opened(path, {}, True) as answers,
        pytest.raises(RequestError, match="is not what was answered before: its first 30 lines have changed"),
    ):
        crew_of(terms, answers, FakeAsker(4, random.Random(0)), Alone())


def test_lines_are_read_again_where_they_lie(folder: Path) -> None:
    path = folder / "questions.jsonl"
    texts = [b"one", b"", b"three \xc3\xa9", b"x" * (3 << 20), b"last"]
    path.write_bytes(b"\n".join(texts))
    lines = Lines(path)
    found: list[Line] = []
    while (line := lines.read()) is not None:
        found.append(line)
    assert [lines.content(line) for line in found] == texts
    assert [line.place for line in found] == list(range(5))
    assert lines.left() == 0
    mark = lines.mark()
    lines.check(mark, path)
    assert (mark.lines, mark.bytes) == (5, path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RequestError, match="its first 5 lines have changed"):
        lines.check(mark, path)


def test_many_lines_take_no_memory(terms: Terms, folder: Path) -> None:
    """The first answers come before the file has been read, and all of them in their order."""
    count, chance = 12_000, random.Random(0)
    with terms.path.open("w", encoding="utf-8") as file:
        file.writelines(f'{{"image":"{place // 5}.png","question":"{place}?"}}\n' for place in range(count))

    class Fast(FakeAsker):
        def wait(self, seconds: float | None) -> list[Answered]:
            if not first:
                first.append(crew_lines.bytes)
            places = chance.sample([*self.tasks], len(self.tasks) // 2 + 1)
            return [Answered(place, reply_of(self.tasks.pop(place)), ONE) for place in places]

        def ask(self, tasks: Iterable[Task]) -> None:
            self.tasks |= {task.place: task for task in tasks}

    first: list[int] = []
    peaks: list[int] = []
    crew_lines = Lines(terms.path)
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew = Crew(crew_lines, answers, LineReader(terms), Fast(64, chance), IDENTITY, Alone())

        def on_progress(tally: Tally, lines: int) -> None:
            if tally.answers > 1000 * len(peaks):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

        crew.run(on_progress)
        assert answers.tally.answers == count
    assert first[0] < 5_000
    assert peaks[-1] - peaks[2] < 4_000
    with (folder / "answers.jsonl").open(encoding="utf-8") as file:
        assert all(line == f'{{"answer": "{place}?"}}\n' for place, line in enumerate(file))
