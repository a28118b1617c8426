"""Files that are not as they should be, disks that fail, notices that nobody reads: a sentence, and all is kept."""

import codecs
import errno
import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.batch import answers as module
from engine.batch import handout
from engine.batch.answers import journal_of, opened
from engine.batch.crew import Alone, Crew, Joined, Said
from engine.batch.differing import differing
from engine.batch.handout import Handout
from engine.batch.journal import encode
from engine.batch.lines import Line, Lines
from engine.batch.notices import tell
from engine.batch.request import LineReader
from engine.batch.tally import Tally
from engine.batch.terms import Terms
from engine.batch.worker import Task, Worker
from engine.errors import EngineError, RequestError
from tests.batch.conftest import Write
from tests.batch.simulation import AGREED, IDENTITY, FakeAsker, FakePeers, FakePipeline
from tests.batch.test_answers import add, expected, open_at
from tests.batch.test_crew import crew_of, question, read


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "answers.jsonl"


NO_JOURNALS: dict[str, Callable[[bytes], bytes]] = {
    "rubbish": lambda whole: b"mine\n" * 9,
    "edited": lambda whole: whole.replace(b"pair", b"pear"),
    "with other line ends": lambda whole: whole.replace(b"\n", b"\r\n"),
    "of a later version": lambda whole: encode(b"S", b'{"version": 2, "more": 1}') + encode(b"Z", b"?"),
    "a list": lambda whole: encode(b"S", b"[1]"),
    "no state": lambda whole: encode(b"A", b"1 0 x"),
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("kind", NO_JOURNALS)
def test_a_journal_that_cannot_be_read_stays_as_it_is(path: Path, kind: str) -> None:
    """And so do the answers: whoever knows what it is can still go on from it."""
    with open_at(path) as answers:
        for place in (0, 1, 5):
            add(answers, place)
    before = path.read_bytes()
    journal = journal_of(path)
    journal.write_bytes(NO_JOURNALS[kind](journal.read_bytes()))
    kept = journal.read_bytes()
    with pytest.raises(RequestError, match=r"is not as this version writes it .*or remove it and"), open_at(path):
        pass
    assert (journal.read_bytes(), path.read_bytes()) == (kept, before)


@pytest.mark.parametrize("record", [b"1 2", b"x 1,1 ", b"1 a,b ", b"1 1,1,1,1,1,1,1,1,1 "])
def test_answers_that_cannot_be_read_are_refused(path: Path, record: bytes) -> None:
    with open_at(path) as answers:
        add(answers, 0)
    with journal_of(path).open("ab") as file:
        file.write(encode(b"A", record))
    with pytest.raises(RequestError, match="is not as this version writes it"), open_at(path):
        pass


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_journal_that_is_no_file(path: Path, make: Callable[[Path], None]) -> None:
    make(journal_of(path))
    with pytest.raises(RequestError, match=r"journal cannot be written \(.*\); write to another file"), open_at(path):
        pass
    assert [journal_of(path)] == list(path.parent.iterdir())


@pytest.mark.parametrize("name", ["fsync", "replace", "open", "pwrite", "ftruncate"])
@pytest.mark.parametrize("seed", range(5))
def test_a_disk_that_fails_now_and_then(path: Path, name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any call: each run ends in a sentence or at its end, and nothing is lost or left over."""
    chance, call, total = random.Random(seed), getattr(os, name), 60
    monkeypatch.setattr(module, "COMPACT_BYTES", 2000)

    def fails(*given: Any, **more: Any) -> Any:
        if chance.random() < risk:
            raise OSError(errno.EIO, "Input/output error")
        return call(*given, **more)

    held, refused = set[int](), 0
    for risk in [0.02, 0.05, 0.2, 0.5] * 6:
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            try:
                with open_at(path) as answers:
                    assert held <= {place for place in range(total) if answers.holds(place)}
                    for place in random.Random(risk).sample(range(total), 20):
                        if not answers.holds(place):
                            add(answers, place)
                            held.add(place)
                    answers.finish()
            except RequestError:
                refused += 1
    assert refused
    with open_at(path) as answers:
        assert held <= {place for place in range(total) if answers.holds(place)}
        for place in range(total):
            if not answers.holds(place):
                add(answers, place)
        answers.finish()
    assert path.read_bytes() == expected(list(range(total)))
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, journal_of(path).name]


def test_a_disk_that_fails_at_the_start_is_left_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            with (
                pytest.raises(RequestError, match=r"journal cannot be written \(Read-only file system\)"),
                open_at(path),
            ):
                pass
        assert not list(path.parent.iterdir())


def test_a_name_that_is_too_long(path: Path) -> None:
    for length in (250, 300):
        long = path.with_name("x" * length)
        with pytest.raises(RequestError, match=r"cannot be written \(File name too long\)"), open_at(long):
            pass
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: int, what: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(RequestError, match=r"cannot be locked .* use a file system with locks"), open_at(path):
        pass


def read_all(path: Path) -> list[bytes]:
    lines, found = Lines(path), []
    while (line := lines.read()) is not None:
        found.append(lines.content(line))
    return found


def test_a_mark_of_the_byte_order_is_no_text(folder: Path) -> None:
    path = folder / "questions.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b"one\r\n\r\n" + codecs.BOM_UTF8)
    assert read_all(path) == [b"one\r", b"\r", codecs.BOM_UTF8]
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        path.write_bytes("\ufeff{}".encode(encoding))
        with pytest.raises(RequestError, match="is UTF-16, and UTF-8 is read; convert it"):
            Lines(path)
    path.write_bytes(b"\n")
    assert read_all(path) == [b""]


def test_questions_that_somebody_is_writing(folder: Path) -> None:
    """A line without a break is the last one: its other half would be a line of its own, and move all behind it."""
    path = folder / "questions.jsonl"
    path.write_bytes(b"one\ntw")
    lines = Lines(path)
    for text in (b"one", b"tw"):
        line = lines.read()
        assert line is not None
        assert lines.content(line) == text
    mark = lines.mark()
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert lines.read() is None
    with pytest.raises(RequestError, match="its line 2 had no end and goes on now; begin a new line there"):
        Lines(path).check(mark, folder / "answers.jsonl")
    path.write_bytes(b"one\ntw\nthree\n")
    Lines(path).check(mark, folder / "answers.jsonl")
    assert read_all(path) == [b"one", b"tw", b"three"]


def test_questions_that_are_cut_short_meanwhile(terms: Terms, write: Write, folder: Path) -> None:
    path = write([question(place) for place in range(90)])
    whole = path.read_bytes()

    class Cutting(FakeAsker):
        def wait(self, seconds: float | None) -> list[Any]:
            if len(self.answered) > 20:
                os.truncate(path, len(whole) // 2)
            return super().wait(seconds)

    with (
        pytest.raises(RequestError, match=r"became shorter while it was read: line \d+ is gone; what was answered"),
        opened(folder / "answers.jsonl", {}, True) as answers,
    ):
        crew_of(terms, answers, Cutting(4, random.Random(1)), Alone()).run()
    path.write_bytes(whole)
    with opened(folder / "answers.jsonl", {}, True) as answers:
        crew_of(terms, answers, FakeAsker(4, random.Random(2)), Alone()).run()
    assert read(folder / "answers.jsonl") == [{"answer": f"{place}?"} for place in range(90)]


def test_ranks_that_were_started_otherwise_are_refused(terms: Terms, write: Write, folder: Path) -> None:
    write([question(place) for place in range(9)])
    agreed = AGREED | {"timeout": 3.0, "model": "other"}

    class Other(FakePeers):
        def heard(self) -> list[tuple[int, Said]]:
            return [(1, Joined(4, IDENTITY, "node7", agreed))]

    peers, asker = Other({1: FakeAsker(4, random.Random(0))}, random.Random(0)), FakeAsker(4, random.Random(0))
    said = (
        r"rank 1 on node7 was started with another model and timeout \(model pair instead of other; timeout none "
        r"instead of 3.0\); give all ranks the same command"
    )
    with pytest.raises(EngineError, match=said), opened(folder / "answers.jsonl", {}, True) as answers:
        Crew(Lines(terms.path), answers, LineReader(terms), asker, IDENTITY, peers).run()


def test_what_is_different_is_told_in_few_words() -> None:
    before = {"a": {"b": {"c": 1, "d": 2}}, "e": "x" * 99, "f": 1}
    assert differing(before, before) == ""
    assert differing(before, before | {"a": {"b": {"c": 1, "d": 3}}}) == "a (a.b.d 2 instead of 3)"
    assert differing(before, {"a": before["a"], "f": None, "g": True}) == (
        f"f and g and e (f 1 instead of none; g none instead of True; e {'x' * 60}... instead of none)"
    )
    assert differing({}, dict.fromkeys("abcde", 1)).endswith("; c none instead of 1; 2 more)")


def test_a_name_that_is_no_text_ends_no_run(terms: Terms) -> None:
    """Of a folder, in the sentence about its picture."""
    broken = Terms(terms.model, Path("\udcff") / "questions.jsonl", terms.report)
    task = Task(0, b'{"image": "none.png", "question": "?"}')
    asked = FakePipeline(lambda question: RequestError(f"{question.images[0]} does not exist"))
    with Worker(asked, LineReader(broken)) as worker:  # type: ignore[arg-type]
        worker.ask([task])
        (found,) = worker.wait(None)
    assert found.tally == Tally(errors=1)
    assert b"line 1: ?/none.png does not exist" in found.content


def test_what_nobody_reads_ends_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        for _ in range(3):
            tell("half is done")
    monkeypatch.setattr(sys, "stderr", None)
    tell("all is done")


def test_long_lines_are_not_all_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handout, "MOST_HELD", 100)
    lengths = [10, 95, 3, 200, 3, 3, 60, 60, 3]
    lines = [Line(place, 0, length) for place, length in enumerate(lengths)]
    left = iter(lines)
    given, rank = Handout(left, lambda: 9), 0
    given.join(rank)
    taken = []
    while lines_now := given.take(rank, 4):
        taken.append([line.length for line in lines_now])
        assert given.take(rank, 4) == [] or sum(taken[-1]) < 100
        for line in lines_now:
            given.answered(rank, line.place)
    assert taken == [[10, 95], [3, 200], [3, 3, 60, 60], [3]]


def test_files_never_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library says on stderr would be written into them."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from engine.batch.locked import open_locked\n"
        "[os.close(file) for file in range(3)]\n"
        "sys.exit(open_locked(Path(sys.argv[1])))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "answers.jsonl")])
    assert done.returncode > 2
