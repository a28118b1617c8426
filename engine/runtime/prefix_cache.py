"""Beginnings of prompts whose keys and values are kept: another question about the same picture feeds its text only.

A prompt's rows are known by their marks, int64 [S,M]: equal marks from the first row on have equal keys and values.
Shapes: S rows of a prompt, M numbers of a mark.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.errors import EngineError
from engine.runtime.language import Language

LOG = logging.getLogger(__name__)
MOST_ENTRIES = 256
"""All are compared with each prompt."""


@dataclass(eq=False)
class Entry:
    """Rows behind those that it shares with another entry. marks: of all rows from the first on; start: of its own;
    saved: where the language model has them; size: bytes; followers: entries that share its rows."""

    language: Language
    marks: np.ndarray
    parent: "Entry | None"
    start: int
    saved: int
    size: int
    followers: int = 0

    def lineage(self) -> Iterator["Entry"]:
        """From itself back to the one with the first rows."""
        entry: Entry | None = self
        while entry is not None:
            yield entry
            entry = entry.parent


@dataclass(frozen=True)
class Known:
    """The first `count` rows of a prompt, which an entry has with those before it."""

    entry: Entry | None = None
    count: int = 0


class PrefixCache:
    """Of all models of a process; those that were used last are kept, within a number of bytes."""

    def __init__(self, capacity: int) -> None:
        """capacity: most bytes; 0 keeps nothing."""
        self._capacity, self._allowed = capacity, capacity
        self._entries: dict[Entry, None] = {}
        """The one used longest ago first."""
        self._used = 0

    def nbytes(self) -> int:
        return self._used

    def allow(self, nbytes: int) -> None:
        """As much as others leave: keep no more from now on."""
        self._allowed = min(self._capacity, nbytes)
        self._make_room(0)

    def find(self, language: Language, marks: np.ndarray) -> Known:
        """As many of the first rows as are known."""
        best = Known()
        for entry in [*self._entries]:
            if entry not in self._entries or entry.language is not language:
                continue
            if not language.holds(entry.saved):
                self._forget_all(language)  # its ranks ended
                return Known()
            count = _shared(entry.marks, marks)
            if count > best.count:
                best = Known(entry, count)
        return best

    def restore(self, known: Known, slot: int) -> None:
        """Give an empty slot those rows."""
        assert known.entry is not None
        stop, parts = known.count, []
        for entry in known.entry.lineage():
            if entry.start < stop:
                parts.append((entry.saved, stop - entry.start))
                stop = entry.start
        for saved, count in reversed(parts):
            known.entry.language.restore(slot, saved, count)
        self._touch(known.entry)

    def keep(self, language: Language, slot: int, marks: np.ndarray) -> None:
        """The first rows of a slot, if there is room for them."""
        known = self.find(language, marks)
        if known.entry is not None:
            self._touch(known.entry)
        size = (len(marks) - known.count) * language.row_bytes()
        if not size or size > self._allowed:
            return
        self._follow(known.entry, 1)
        try:
            if self._make_room(size):
                saved = language.save(slot, known.count, len(marks))
                self._entries[Entry(language, marks, known.entry, known.count, saved, size)] = None
                self._used += size
                return
        except EngineError as error:  # of memory: the answer needs none of it
            LOG.warning("the beginning of a prompt is not kept: %s", error)
        self._follow(known.entry, -1)

    def _touch(self, entry: Entry) -> None:
        for one in [*entry.lineage()][::-1]:
            self._entries[one] = self._entries.pop(one)

    def _follow(self, entry: Entry | None, more: int) -> None:
        if entry is not None:
            entry.followers += more

    def _make_room(self, size: int) -> bool:
        """Forget what was used longest ago, and nothing that others follow, until so much fits -> whether it does."""
        while self._used + size > self._allowed or len(self._entries) >= MOST_ENTRIES:
            victim = next((entry for entry in self._entries if not entry.followers), None)
            if victim is None:
                return False
            self._drop(victim)
            victim.language.forget(victim.saved)
        return True

    def _forget_all(self, language: Language) -> None:
        for entry in [entry for entry in self._entries if entry.language is language]:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry]
        self._used -= entry.size
        self._follow(entry.parent, -1)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """[S,M], [S',M] -> how many of the first rows are the same."""
    length = min(len(one), len(other))
    different = np.flatnonzero((one[:length] != other[:length]).any(axis=1))
    return int(different[0]) if len(different) else length
