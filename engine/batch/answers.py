"""The file of answers and, beside it, the journal that the same command goes on from.

Every answer is written to the journal first, and then to the file, in the order of the questions or as they come. Of
the file, only what the journal's first record says is believed: the rest is written again from the journal.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from engine.batch.differing import differing
from engine.batch.journal import Journal, Record, Tail, create
from engine.batch.line_set import LineSet
from engine.batch.lines import Mark
from engine.batch.locked import open_locked
from engine.batch.tally import Tally
from engine.errors import RequestError
from engine.json_file import Unreadable, parse_json

COMPACT_BYTES = 32 << 20
"""A journal of this size is written anew, without what the file of answers holds."""
SYNC_SECONDS = 1.0
"""Answers of at most this time are lost with a machine; of a process that is killed, none."""
STATE, MARK, ANSWER = b"S", b"M", b"A"
VERSION = 1


class _Ahead(NamedTuple):
    """An answer whose turn has not come, in the journal."""

    offset: int
    length: int
    tally: Tally


@dataclass(frozen=True)
class _State:
    """What the file of answers holds for certain. ranges: first and behind the last line of each row of lines."""

    settings: dict[str, Any]
    started: int
    bytes: int
    ranges: list[int]
    tally: list[int]
    mark: dict[str, Any]
    version: int = VERSION


class Answers:
    """An open file of answers; `opened` makes one."""

    def __init__(
        self, path: Path, journal: Journal, output: int, settings: dict[str, Any], is_ordered: bool, head: bytes = b""
    ) -> None:
        """output: a descriptor. head: a first line, without its break, that is no answer. Raises RequestError when the
        answers so far were made with other settings."""
        self.path, self.is_ordered = path, is_ordered
        self._journal = journal
        records = journal.records()
        self._settings, state = settings, self._read_state(next(records, None))
        self._check(state, os.fstat(output).st_size)
        with self._reading():
            self.mark, self.tally, self.started = Mark(**state.mark), Tally(*state.tally), int(state.started)
            self._lines = LineSet(state.ranges)
            self.next = state.ranges[1] if is_ordered else 0
        """In the order of the questions, the first line without an answer in the file."""
        self._ahead: dict[int, _Ahead] = {}
        self._ahead_bytes = 0
        with self._writing():
            self._output = Tail(output, state.bytes)
            if not state.bytes:
                self._write(head)
            for record in records:
                with self._reading():
                    if record.kind == MARK:
                        self.mark = Mark(**parse_json(record.content))
                        continue
                    place, ahead, content = _parse(record)
                self._keep(place, ahead, content)
        self._synced = time.monotonic()

    def is_empty(self) -> bool:
        """Whether no line is answered."""
        return self._lines.is_empty()

    def holds(self, place: int) -> bool:
        """Whether a line is answered."""
        return place in self._lines

    def add(self, place: int, content: bytes, tally: Tally, mark: Callable[[], Mark]) -> None:
        """Keep a line's answer, empty where the line was. mark: how far the questions are read. Raises RequestError."""
        with self._writing():
            if place >= self.mark.lines:
                self.mark = mark()
                self._journal.append(MARK, _dump(asdict(self.mark)))
            head = _head(place, tally)
            offset = self._journal.append(ANSWER, head + content) + len(head)
            self._keep(place, _Ahead(offset, len(content), tally), content)
            if self._journal.size > max(COMPACT_BYTES, 2 * self._ahead_bytes):
                self._compact()
            elif time.monotonic() > self._synced + SYNC_SECONDS:
                self._journal.sync()
                self._synced = time.monotonic()

    def finish(self) -> None:
        """All is on the disk, and the journal is short. Raises RequestError."""
        with self._writing():
            self._compact()

    def size(self) -> int:
        """Of the file."""
        return self._output.size

    def _keep(self, place: int, ahead: _Ahead, content: bytes) -> None:
        self._lines.add(place)
        self.tally += ahead.tally
        if not self.is_ordered:
            self._write(content)
            return
        if place == self.next:
            self._write(content)
            self.next += 1
        else:
            self._ahead[place] = ahead
            self._ahead_bytes += ahead.length
        while (following := self._ahead.get(self.next)) is not None:
            self._write(self._journal.read(following.offset, following.length))
            del self._ahead[self.next]
            self._ahead_bytes -= following.length
            self.next += 1

    def _write(self, content: bytes) -> None:
        if content:
            self._output.append(content + b"\n")

    def _compact(self) -> None:
        self._output.sync()
        self._journal.sync()
        waiting = sorted(self._ahead.items())
        written = self.tally
        for _, ahead in waiting:
            written -= ahead.tally
        ranges = [0, self.next] if self.is_ordered else self._lines.ranges()
        counts, mark = list(written.counts()), asdict(self.mark)
        state = _State(self._settings, self.started, self._output.size, ranges, counts, mark)
        # The old journal's offsets hold until it is replaced.
        records = ((ANSWER, self._record(place, ahead)) for place, ahead in waiting)
        self._journal.replace(chain([(STATE, _dump(asdict(state)))], records))
        found = self._journal.records()
        next(found)
        self._ahead = {place: ahead for place, ahead, _ in map(_parse, found)}
        self._ahead_bytes = sum(ahead.length for ahead in self._ahead.values())
        self._synced = time.monotonic()

    def _record(self, place: int, ahead: _Ahead) -> bytes:
        return _head(place, ahead.tally) + self._journal.read(ahead.offset, ahead.length)

    def _check(self, state: _State, size: int) -> None:
        """Raises RequestError."""
        if difference := differing(state.settings, self._settings):
            raise RequestError(
                f"{self.path} holds answers with another {difference}; write to another file, or remove it and "
                f"{journal_of(self.path)}"
            )
        if size < state.bytes:
            raise RequestError(
                f"{self.path} is shorter than {journal_of(self.path)} says: answers were removed from it; remove both "
                "to begin anew"
            )

    def _read_state(self, record: Record | None) -> _State:
        """Raises RequestError."""
        with self._reading():
            if record is None or record.kind != STATE:
                raise ValueError("its first line is not whole")
            found = parse_json(record.content)
            if found["version"] != VERSION:
                raise ValueError(f"it is of version {found['version']}, and {VERSION} is read")
            return _State(**found)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises RequestError for what a journal cannot say."""
        try:
            yield
        except (Unreadable, ValueError, TypeError, LookupError) as error:
            raise RequestError(
                f"{journal_of(self.path)} is not as this version writes it ({error}); continue with the version that "
                f"wrote it, or remove it and {self.path}"
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises RequestError for what the disk says."""
        try:
            yield
        except OSError as error:
            raise RequestError(
                f"{self.path} cannot be written ({error.strerror}); what was answered is kept: make room there, and "
                "the same command continues"
            ) from None


def journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


@contextmanager
def opened(path: Path, settings: dict[str, Any], is_ordered: bool, head: bytes = b"") -> Iterator[Answers]:
    """The answers so far, and room for more. settings: what they depend on. head: a first line that is no answer; it
    depends on nothing else. A run that fails before anything is answered leaves nothing behind. Raises RequestError,
    also while another run writes there."""
    settings = settings | {"order": "of the questions" if is_ordered else "as they come"}
    journal, answers = journal_of(path), None
    with ExitStack() as stack:
        with _opening(journal):
            is_new = not path.exists() and not path.is_symlink()
            output = open_locked(path)
            stack.callback(os.close, output)
        try:
            with _opening(journal):
                stack.callback((kept := _journal(journal, path, output, settings)).close)
            answers = Answers(path, kept, output, settings, is_ordered, head)
            yield answers
        except BaseException:
            with suppress(OSError):
                if answers is not None and answers.is_empty():
                    os.ftruncate(output, 0)
                    journal.unlink()
                if is_new and not os.fstat(output).st_size:
                    path.unlink()
            raise


@contextmanager
def _opening(journal: Path) -> Iterator[None]:
    """Raises RequestError for what the disk says."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"{journal} cannot be written ({error.strerror}); write to another file") from None


def _journal(journal: Path, path: Path, output: int, settings: dict[str, Any]) -> Journal:
    """Of earlier runs, or a new one. Raises RequestError, and OSError."""
    if journal.exists() and _is_unused(journal):
        os.ftruncate(output, 0)
        journal.unlink()
    if not journal.exists():
        if os.fstat(output).st_size:
            raise RequestError(
                f"{path} exists and has no journal of an earlier run; remove it, or write to another file"
            )
        state = _State(settings, int(time.time()), 0, [0, 0], list(Tally().counts()), asdict(Mark()))
        create(journal, [(STATE, _dump(asdict(state)))])
    return Journal(journal)


def _is_unused(path: Path) -> bool:
    """Whether a journal knows of no answer; its settings then bind nobody. Raises OSError."""
    journal = Journal(path)
    try:
        records = journal.records()
        first = next(records, None)
        if first is None or first.kind != STATE:
            return False
        state = parse_json(first.content)
        is_known = state["version"] == VERSION and not state["bytes"]
        return is_known and all(record.kind != ANSWER for record in records)
    except (Unreadable, TypeError, LookupError):
        return False
    finally:
        journal.close()


def _head(place: int, tally: Tally) -> bytes:
    return b"%d %s " % (place, b",".join(b"%d" % count for count in tally.counts()))


def _parse(record: Record) -> tuple[int, _Ahead, bytes]:
    place, counts, content = record.content.split(b" ", 2)
    offset = record.offset + len(record.content) - len(content)
    return int(place), _Ahead(offset, len(content), Tally(*map(int, counts.split(b",")))), content


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
