"""Which rank gets which questions: as they ask for them, those about one picture to one rank, and near the end no more
than its share to any. What a rank leaves lying is given to one that has nothing to do, and the first answer counts.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice

from engine.batch.lines import Line

MOST_PUT_BY = 64
"""Questions that are put by for a rank which has their picture."""
MOST_HELD = 1 << 27
"""Bytes of lines that a rank has at once, but for one more: those with pictures in them are long."""
MOST_PICTURES = 1 << 16
"""Whose ranks are remembered."""


class Handout:
    """Of rank 0."""

    def __init__(self, lines: Iterator[Line | None], left: Callable[[], int]) -> None:
        """lines: read as they are handed out; None where there is none now. left: about how many are still to come."""
        self._lines, self._left = lines, left
        self._has_ended = False
        self._put_by: dict[int, deque[Line]] = {}
        """Rank -> lines."""
        self._count_put_by = 0
        self._ranks: OrderedDict[int, int] = OrderedDict()
        """Picture -> the rank that has it."""
        self._given: dict[int, dict[int, Line]] = {}
        """Rank -> place -> line, in the order in which they were given."""
        self._holders: dict[int, list[int]] = {}
        """Place -> ranks that answer it."""
        self._uncopied = 0
        """Places that one rank answers."""
        self._returned: deque[Line] = deque()
        """Of ranks that were lost."""

    def join(self, rank: int) -> None:
        self._given[rank], self._put_by[rank] = {}, deque()

    def take(self, rank: int, capacity: int) -> list[Line]:
        """As many as it is to answer now, beside those that it has."""
        mine = self._given[rank]
        share = max(1, -(-self.unanswered() // len(self._given)))
        room = max(0, min(capacity, share) - len(mine))
        held, lines = sum(line.length for line in mine.values()), list[Line]()
        for line in islice(self._next(rank), room if held < MOST_HELD else 0):
            lines.append(line)
            held += line.length
            if held >= MOST_HELD:
                break
        if not lines and not mine and self._uncopied:
            lines = self._copies(rank, capacity)
        for line in lines:
            mine[line.place] = line
            holders = self._holders.setdefault(line.place, [])
            holders.append(rank)
            self._uncopied += {1: 1, 2: -1}.get(len(holders), 0)
        return lines

    def answered(self, rank: int, place: int) -> list[int] | None:
        """Other ranks that need not answer it any more; None if it had been answered."""
        holders = self._holders.pop(place, None)
        if holders is None:
            return None
        self._uncopied -= len(holders) == 1
        for holder in holders:
            del self._given[holder][place]
        return [holder for holder in holders if holder != rank]

    def lose(self, rank: int) -> None:
        """A rank that answers no more: its questions go to others."""
        for place, line in self._given.pop(rank).items():
            self._holders[place].remove(rank)
            self._uncopied += {0: -1, 1: 1}.get(len(self._holders[place]), 0)
            if not self._holders[place]:
                del self._holders[place]
                self._returned.append(line)
        put_by = self._put_by.pop(rank)
        self._count_put_by -= len(put_by)
        self._returned.extend(put_by)

    def is_over(self) -> bool:
        return self._has_ended and not self._holders and not self._returned and not self._count_put_by

    def has_work(self, rank: int) -> bool:
        return bool(self._given[rank])

    def unanswered(self) -> int:
        """About how many are to be answered."""
        return self._left() + len(self._returned) + len(self._holders) + self._count_put_by

    def _next(self, rank: int) -> Iterator[Line]:
        while self._returned:
            yield self._returned.popleft()
        while True:
            if self._put_by[rank]:
                self._count_put_by -= 1
                yield self._put_by[rank].popleft()
            elif (line := self._read(rank)) is not None:
                yield line
            elif self._count_put_by:
                fullest = max(self._put_by.values(), key=len)
                self._count_put_by -= 1
                yield fullest.pop()
            else:
                return

    def _read(self, rank: int) -> Line | None:
        """The next line that is not another rank's."""
        while not self._has_ended:
            try:
                line = next(self._lines)
            except StopIteration:
                self._has_ended = True
                break
            if line is None:
                break
            if line.picture is None:
                return line
            owner = self._ranks.get(line.picture, rank)
            queue = self._put_by.get(owner)
            if owner == rank or queue is None or len(queue) >= MOST_PUT_BY:
                self._remember(line.picture, rank)
                return line
            queue.append(line)
            self._count_put_by += 1
        return None

    def _remember(self, picture: int, rank: int) -> None:
        self._ranks[picture] = rank
        self._ranks.move_to_end(picture)
        if len(self._ranks) > MOST_PICTURES:
            self._ranks.popitem(last=False)

    def _copies(self, rank: int, most: int) -> list[Line]:
        """The last half of what the busiest rank has and nobody else: it will come to them last."""
        others = [given for other, given in self._given.items() if other != rank]
        alone = [line for line in max(others, key=len, default={}).values() if len(self._holders[line.place]) == 1]
        return alone[len(alone) // 2 :][-most:]
