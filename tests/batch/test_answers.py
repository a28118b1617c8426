"""The file of answers and its journal: whatever is cut off, refused by the disk or run twice, nothing is lost."""

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from engine.batch import answers as module
from engine.batch.answers import Answers, journal_of, opened
from engine.batch.journal import Journal, create, decode, encode
from engine.batch.line_set import LineSet
from engine.batch.lines import Mark
from engine.batch.tally import Tally
from engine.errors import RequestError
from tests.batch.simulation import ONE

SETTINGS = {"model": "pair"}
ORDERS = (True, False)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "answers.jsonl"


@contextmanager
def open_at(path: Path, is_ordered: bool = True) -> Iterator[Answers]:
    with opened(path, SETTINGS, is_ordered) as answers:
        yield answers


def content(place: int) -> bytes:
    """Of some lines a blank one's, of some a long one."""
    if place % 7 == 3:
        return b""
    return f'{{"answer": "{place} é{"x" * (place * 37 % 500)}"}}'.encode()


def add(answers: Answers, place: int) -> None:
    answers.add(place, content(place), ONE if content(place) else Tally(), lambda: Mark(place + 5, 100 * place, "d"))


def expected(places: list[int]) -> bytes:
    return b"".join(content(place) + b"\n" for place in places if content(place))


@pytest.mark.parametrize("is_ordered", ORDERS)
@pytest.mark.parametrize("seed", range(6))
def test_a_machine_that_is_lost_again_and_again(
    path: Path, is_ordered: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it comes back with some of what was written last: the journal cut, the file cut or with rubbish."""
    chance = random.Random(seed)
    monkeypatch.setattr(module, "COMPACT_BYTES", chance.choice([1, 2000, 1 << 30]))
    total, lives = 60, 0
    order: list[int] = []
    while True:
        with open_at(path, is_ordered) as answers:
            assert path.read_bytes() == (expected(list(range(answers.next))) if is_ordered else path.read_bytes())
            left = [place for place in range(total) if not answers.holds(place)]
            assert answers.tally == sum(
                (ONE for place in range(total) if answers.holds(place) and content(place)), Tally()
            )
            chance.shuffle(left)
            lives += 1
            if lives > 8:
                for place in left:
                    add(answers, place)
                answers.finish()
                break
            for place in left[: chance.randint(0, 9)]:
                add(answers, place)
                order.append(place)
        journal = journal_of(path)
        with journal.open("r+b") as file:
            first = len(file.readline())
            whole = journal.stat().st_size
            file.truncate(chance.randint(max(first, whole - 700), whole))
        if is_ordered and chance.random() < 0.5:
            record = decode(journal.read_bytes().splitlines(keepends=True)[0])
            assert record is not None
            certain = json.loads(record[1])["bytes"]
            with path.open("r+b") as file:
                file.truncate(chance.randint(certain, path.stat().st_size))
                file.seek(0, os.SEEK_END)
                file.write(b'{"rubbish": ' * chance.randint(0, 5))
    lines = path.read_bytes().splitlines(keepends=True)
    assert (lines if is_ordered else sorted(lines)) == (
        expected(list(range(total))).splitlines(keepends=True)
        if is_ordered
        else sorted(expected(list(range(total))).splitlines(keepends=True))
    )
    with open_at(path, is_ordered) as answers:
        assert all(answers.holds(place) for place in range(total))
    assert len(journal_of(path).read_bytes().splitlines()) == 1


@pytest.mark.parametrize("is_ordered", ORDERS)
def test_what_was_killed_loses_nothing(path: Path, folder: Path, is_ordered: bool) -> None:
    """Copies of both files, made between any two writes, go on to the same end."""
    places = list(range(30))
    random.Random(3).shuffle(places)
    write, copies = os.pwrite, []

    def copying(file: int, data: bytes, offset: int) -> int:
        copy = folder / f"copy {len(copies)}"
        copy.mkdir()
        for name in (path, journal_of(path)):
            shutil.copy(name, copy)
        copies.append((copy, added))
        return write(file, data, offset)

    added = 0
    with pytest.MonkeyPatch.context() as patch, open_at(path, is_ordered) as answers:
        patch.setattr(os, "pwrite", copying)
        for place in places:
            add(answers, place)
            added += 1
        answers.finish()
    assert len(copies) > 50
    for copy, count in copies:
        with open_at(copy / path.name, is_ordered) as answers:
            missing = [place for place in places if not answers.holds(place)]
            assert len(places) - len(missing) in (count, count + 1)
            for place in missing:
                add(answers, place)
            answers.finish()
        assert (copy / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("is_ordered", ORDERS)
@pytest.mark.parametrize("seed", range(6))
def test_a_full_disk(path: Path, is_ordered: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a part of a write, or none; when there is room, the same goes on."""
    chance, write = random.Random(seed), os.pwrite
    monkeypatch.setattr(module, "COMPACT_BYTES", 3000)
    room = chance.randint(0, 4000)

    def full(file: int, data: memoryview, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(file, data[:room], offset)
        room -= count
        return count

    total = 80
    monkeypatch.setattr(os, "pwrite", full)
    refused = 0
    while True:
        with suppress(RequestError), open_at(path, is_ordered) as answers:
            for place in range(total):
                if not answers.holds(place):
                    add(answers, place)
            answers.finish()
            break
        refused += 1
        room = chance.randint(0, 4000)
    assert refused > 2
    assert path.read_bytes() == expected(list(range(total)))


def test_a_full_disk_while_the_journal_is_written_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_at(path) as answers:
        for place in (0, 2, 4):
            add(answers, place)

        def fails(file: int) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(RequestError, match=r"Disk quota exceeded\); what was answered is kept"):
                answers.finish()
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.journal"]
    with open_at(path) as answers:
        assert [place for place in range(6) if answers.holds(place)] == [0, 2, 4]


def test_two_runs_refuse_each_other(path: Path) -> None:
    with open_at(path) as answers:
        add(answers, 0)
        with (
            pytest.raises(RequestError, match=r"another run is writing .*answers.jsonl; wait until it is done"),
            open_at(path),
        ):
            pass
        add(answers, 1)
    with open_at(path) as answers:
        assert answers.holds(1)


def test_answers_that_came_otherwise_are_refused(path: Path) -> None:
    with open_at(path) as answers:
        add(answers, 0)
        answers.finish()
    model = r"holds answers with another model \(model pair instead of other\); write to another file"
    with pytest.raises(RequestError, match=model), opened(path, {"model": "other"}, True):
        pass
    with pytest.raises(RequestError, match="holds answers with another order"), open_at(path, False):
        pass
    path.write_bytes(b"")
    with pytest.raises(RequestError, match=r"is shorter than .*journal says"), open_at(path):
        pass
    journal_of(path).write_bytes(b"no journal\n")
    with pytest.raises(RequestError, match="is not as this version writes it"), open_at(path):
        pass
    journal_of(path).unlink()
    path.write_bytes(b"mine\n")
    with pytest.raises(RequestError, match="exists and has no journal of an earlier run"), open_at(path):
        pass
    assert path.read_bytes() == b"mine\n"


def test_a_run_that_answered_nothing_binds_nobody(path: Path) -> None:
    """One that failed leaves nothing behind, one that was killed a journal that is begun anew."""
    with pytest.raises(RuntimeError), open_at(path):
        raise RuntimeError
    assert not list(path.parent.iterdir())
    path.touch()
    with pytest.raises(RuntimeError), open_at(path):
        raise RuntimeError
    assert list(path.parent.iterdir()) == [path]
    head = b"the settings"
    with open_at(path):
        pass
    path.write_bytes(head[:5])
    with opened(path, {"model": "other"}, False, head) as answers:
        assert path.read_bytes() == head + b"\n"
        add(answers, 0)
    with pytest.raises(RequestError, match="holds answers with another model and order "), open_at(path):
        pass
    assert path.read_bytes() == head + b"\n" + expected([0])


@pytest.mark.parametrize("is_ordered", ORDERS)
def test_a_head_stands_before_the_answers(path: Path, is_ordered: bool) -> None:
    """Whatever the file lost, and whether the journal was written anew."""
    for place in (1, 0, 2):
        with opened(path, SETTINGS, is_ordered, b"the settings") as answers:
            add(answers, place)
            if place == 0:
                answers.finish()
        if place == 1:
            path.write_bytes(b"the set")
    places = [0, 1, 2] if is_ordered else [1, 0, 2]
    assert path.read_bytes() == b"the settings\n" + expected(places)


def test_the_journal_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first answer comes last."""
    monkeypatch.setattr(module, "COMPACT_BYTES", 5000)
    with open_at(path) as answers:
        for place in range(1, 600):
            add(answers, place)
        held = sum(len(content(place)) for place in range(1, 600))
        assert journal_of(path).stat().st_size < 2 * held + 5000 + 40 * 600
        add(answers, 0)
        for place in range(600, 2000):
            add(answers, place)
            assert journal_of(path).stat().st_size < 2 * held + 5000 + 40 * 600
        assert journal_of(path).stat().st_size < 12_000
        answers.finish()
    assert path.read_bytes() == expected(list(range(2000)))


def test_records_are_whole_or_not_there(folder: Path) -> None:
    path = folder / "journal"
    records = [(b"A", b"one two"), (b"M", "zwölf".encode()), (b"A", b"")]
    create(path, records)
    whole = path.read_bytes()
    assert whole == b"".join(encode(*record) for record in records)
    ends = [len(b"".join(encode(*record) for record in records[:count])) for count in range(4)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        journal = Journal(path)
        count = sum(end <= size for end in ends) - 1
        found = list(journal.records())
        assert [(record.kind, record.content) for record in found] == records[:count]
        assert all(journal.read(record.offset, len(record.content)) == record.content for record in found)
        assert path.read_bytes() == whole[:size]  # until it is written on
        journal.append(b"A", b"more")
        journal.close()
        assert path.read_bytes() == whole[: ends[count]] + encode(b"A", b"more")
    for place in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        journal = Journal(path)
        assert [tuple(record[:2]) for record in journal.records()] == records[: sum(end <= place for end in ends) - 1]
        journal.close()


def test_a_set_of_lines() -> None:
    chance, lines, places = random.Random(1), LineSet(), set()
    assert lines.ranges() == []
    for _ in range(300):
        place = chance.randrange(500)
        lines.add(place)
        places.add(place)
        again = LineSet(lines.ranges())
        assert [place for place in range(520) if place in lines] == sorted(places)
        assert again.ranges() == lines.ranges()
        assert [place for place in range(520) if place in again] == sorted(places)
