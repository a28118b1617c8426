"""KV leases: a slot for each running question of one model, in buffers that all of them share.

Shapes: N places, B slots of one call, T length of a KV buffer, V visual tokens, R rows of one slot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.bindings import past_kv, present_kv, segment_of
from engine.model_config import LanguageConfig
from engine.runtime.arrays import Array, array_namespace, concat, device
from engine.runtime.executor import Buffers, Executor
from engine.runtime.prompt import Need

SHORTEST, GROWTH = 512, 256
"""Buffers have room for at least so many tokens, and for a multiple of so many: how a sum over one is cut into vectors,
and with it the last bits of an answer, must not depend on what else runs."""


class Slot:
    """What one question holds in one model: its place, and how much of it is written."""

    def __init__(self, place: int, need: Need) -> None:
        self.place, self.need = place, need
        self.lengths = [0] * len(need.lengths)
        """Tokens in the layers of each segment."""
        self.next_position = 0
        """Of a token that follows them."""
        self._positions = np.zeros(need.lengths[0], np.int64)
        """Of every row that was fed, the largest of its numbers."""
        self._kept = [np.zeros(length, np.int64) for length in need.lengths]
        """Which of those rows each segment holds."""

    def append(self, positions: np.ndarray, kept: Sequence[np.ndarray]) -> None:
        """[R] or [R,3], and for each segment which of these rows it holds, sorted."""
        fed, positions = self.lengths[0], positions.reshape(len(positions), -1).max(axis=1)
        self._positions[fed : fed + len(positions)] = positions
        for segment, rows in enumerate(kept):
            start = self.lengths[segment]
            self._kept[segment][start : start + len(rows)] = rows + fed
            self.lengths[segment] = start + len(rows)
        self.next_position = max(self.next_position, int(positions.max()) + 1)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """[R]: of these rows, each the largest of its numbers."""
        return self._positions[start:stop]

    def truncate(self, length: int) -> None:
        """Hold the first `length` rows that were fed, and no others."""
        assert 0 <= length <= self.lengths[0], (length, self.lengths[0])
        written = zip(self._kept, self.lengths, strict=True)
        self.lengths = [int(np.searchsorted(kept[:held], length)) for kept, held in written]
        self.next_position = int(self._positions[:length].max(initial=-1)) + 1


@dataclass
class Shared:
    """A buffer [N,A,size,...] in which every place has as much room.

    shape: of the whole buffer; room: the size that a slot needs; written: how much of it has been.
    """

    name: str
    shape: Callable[[int], tuple[int, ...]]
    room: Callable[[Need], int]
    written: Callable[[Slot], int]
    array: Array = None


class Slots:
    """The slots of one model by number. Those that step together lie side by side at the front of every buffer."""

    def __init__(
        self,
        buffers: Buffers,
        config: LanguageConfig,
        num_kv_heads: int,
        prune_layers: Sequence[int],
        places: int,
        planned: Need | None = None,
    ) -> None:
        """places: most slots at once. planned: the room of every slot where a plan fixes it; else buffers grow."""
        self.places = places
        self._buffers, self._planned = buffers, planned
        self._slots: dict[int, Slot] = {}
        segments = [segment_of(layer, prune_layers) for layer in range(config.num_layers)]
        self._kv = [
            [_kv(name, segment, (places, num_kv_heads), config.head_dim) for name in past_kv(layer)]
            for layer, segment in enumerate(segments)
        ]
        self._shared = [shared for pair in self._kv for shared in pair]
        token = [sum(buffers.zeros(kv.name, kv.shape(1)).nbytes // places for kv in pair) for pair in self._kv]
        self._per_token = [
            sum(size for size, of in zip(token, segments, strict=True) if of == segment)
            for segment in range(len(prune_layers) + 1)
        ]

    def share(self, shared: Shared) -> Shared:
        """One more buffer, in which slots have their part, too."""
        self._shared.append(shared)
        return shared

    def nbytes(self, need: Need) -> int:
        """Memory of a slot's keys and values once all of it is written."""
        lengths = (self._planned or need).lengths
        return sum(length * size for length, size in zip(lengths, self._per_token, strict=True))

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def has_place(self) -> bool:
        return len(self._slots) < self.places

    def open(self, number: int, need: Need) -> Slot:
        """An empty slot. Raises EngineError when memory does not suffice."""
        assert number not in self._slots and self.has_place(), number
        self._make_room(need)
        taken = {slot.place for slot in self._slots.values()}
        # Those that step are at the front.
        place = next(place for place in reversed(range(self.places)) if place not in taken)
        slot = self._slots[number] = Slot(place, need)
        return slot

    def close(self, number: int) -> None:
        place = self._slots.pop(number).place
        for shared in self._shared:
            self._buffers.give_back(shared.array[place])

    def gather(self, numbers: Sequence[int]) -> list[Slot]:
        """These slots at places 0 to B-1, in this order of places."""
        slots = [self._slots[number] for number in numbers]
        at = {slot.place: slot for slot in self._slots.values()}
        inside = {slot.place for slot in slots}
        free = [place for place in range(len(slots)) if place not in inside]
        for slot in slots:
            if slot.place >= len(slots):
                self._move(slot, free.pop(), at)
        return sorted(slots, key=lambda slot: slot.place)

    def bind(self, executor: Executor, places: slice) -> None:
        """Bind keys and values at these places, as past and as present."""
        for layer, pair in enumerate(self._kv):
            for past, present, shared in zip(past_kv(layer), present_kv(layer), pair, strict=True):
                part = shared.array[places]
                executor.bind_input(past, part)
                executor.bind_output(present, part)

    def keys(self, place: int) -> list[Array]:
        """[1,Hkv,T,D] of each layer."""
        return [keys.array[place : place + 1] for keys, _ in self._kv]

    def row_bytes(self) -> int:
        """Memory of a row's keys and values in all layers."""
        return sum(self._per_token)

    def copy_out(self, place: int, start: int, stop: int) -> list[Array]:
        """[Hkv,R,D] of each layer, keys and values: rows that no layer lacks."""
        return [_own(kv.array[place, :, start:stop]) for pair in self._kv for kv in pair]

    def copy_in(self, place: int, start: int, rows: Sequence[Array], count: int) -> None:
        """The first `count` of such rows, from `start` on."""
        everything = [kv for pair in self._kv for kv in pair]
        for kv, part in zip(everything, rows, strict=True):
            kv.array[place, :, start : start + count] = part[:, :count]

    def value_norms(self, place: int, columns: np.ndarray) -> Array:
        """[V] -> float32 [V]: length of the value vectors there, a mean over layers and KV heads."""
        means = []
        for _, values in self._kv:
            xp = array_namespace(values.array)
            index = xp.asarray(columns, device=device(values.array))
            picked = xp.astype(xp.take(values.array[place], index, axis=1), xp.float32)
            means.append(xp.mean(xp.sqrt(xp.sum(picked * picked, axis=-1)), axis=0))
        return xp.mean(xp.stack(means), axis=0)

    def _make_room(self, need: Need) -> None:
        """Raises EngineError when memory does not suffice; every buffer is then what it was."""
        made: list[tuple[Shared, Array]] = []
        for shared in self._shared:
            size = shared.room(need) if self._planned is None else shared.room(self._planned)
            if self._planned is None:
                size = max(SHORTEST, -(-size // GROWTH) * GROWTH)
            old = shared.array
            if old is not None and (size == old.shape[2] or (self._slots and size < old.shape[2])):
                continue
            made.append((shared, self._buffers.reserve(shared.name, shared.shape(size))))
        # An engine reads those of one segment together, so they must have one length.
        for shared, array in made:
            old, shared.array = shared.array, array
            # zeros: what lies behind a slot's end is read (and masked), so it must be finite.
            for slot in self._slots.values():
                _copy(shared, old, slot.place, slot.place, slot)

    def _move(self, slot: Slot, place: int, at: dict[int, Slot]) -> None:
        """Let a slot change places with whatever is there."""
        other, before = at.pop(place, None), slot.place
        for shared in self._shared:
            array = shared.array
            if other is not None:
                length = max(shared.written(slot), shared.written(other))
                theirs = _own(array[place, :, :length])
                array[place, :, :length] = array[before, :, :length]
                array[before, :, :length] = theirs
            else:
                _copy(shared, array, before, place, slot)
                self._buffers.give_back(array[before])
        slot.place, at[place] = place, slot
        if other is not None:
            other.place, at[before] = before, other
        else:
            at.pop(before)


def _kv(name: str, segment: int, start: tuple[int, int], head_dim: int) -> Shared:
    return Shared(
        name,
        lambda size: (*start, size, head_dim),
        lambda need: need.lengths[segment],
        lambda slot: slot.lengths[segment],
    )


def _own(part: Array) -> Array:
    """A copy."""
    return concat([part])


def _copy(shared: Shared, source: Array, before: int, place: int, slot: Slot) -> None:
    length = shared.written(slot)
    shared.array[place, :, :length] = source[before, :, :length]
