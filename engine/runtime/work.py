"""What a question asks for while it is answered: it yields work to the scheduler, which sends it the result.

Shapes: R wanted rows.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from engine.families import Pieces, digest_of
from engine.runtime.arrays import Array, concat, to_host
from engine.runtime.language import cut
from engine.runtime.model import VisionLanguageModel
from engine.runtime.prompt import Need, Rows, within
from engine.runtime.vision import pack

NONE = np.empty(0, np.int64)
BLOCK = 2
"""Times the size of a head: rows whose attention ONNX Runtime computes at once on a CPU."""
NO_MARKS = np.empty((0, 0), np.int64)


@dataclass
class Outside:
    """Work that runs no engine, in a thread beside the scheduler's. Result: what `run` returns."""

    run: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True)
class Open:
    """A slot of a model, once there is memory for it. Result: a `Lease`."""

    model: VisionLanguageModel
    need: Need


@dataclass(frozen=True)
class Step:
    """Append a token to a slot. Result: what `read` makes of its logits [vocab], on the host; a row of floats."""

    model: VisionLanguageModel
    slot: int
    token: int
    scored: bool
    read: Callable[[Array], Array]


class Extend:
    """Append rows to a slot, a part in each run. Result: what `read` makes of the wanted rows' logits, on the host."""

    def __init__(
        self,
        model: VisionLanguageModel,
        slot: int,
        rows: Rows,
        wanted: np.ndarray,
        read: Callable[[Array], Array],
        scored: np.ndarray = NONE,
        marks: np.ndarray = NO_MARKS,
    ) -> None:
        """read: [R,vocab] -> any shape; wanted, scored: int64, sorted, among the rows. marks: of the first rows, which
        begin a prompt in an empty slot; what is known of them is not computed, and what is not is kept for others.
        """
        self.model, self._slot, self._rows, self._wanted, self._scored = model, slot, rows, wanted, scored
        self._read = read
        self._logits: list[Array] = []
        self.result: np.ndarray | None = None
        self._parts = cut(rows, wanted, scored, model.prefill_chunk, model.limits)[::-1]
        self._marks, self._to_keep = marks, NO_MARKS
        self.known = 0
        """Rows that another question has left."""

    def advance(self) -> bool:
        """One run -> whether it was the last; then there is `result`. Raises what the engine raises."""
        if len(self._marks):
            self._reuse(self._marks)
            self._marks = NO_MARKS
        part = self._parts[-1]
        wanted, scored = (rows[within(rows, part)] - part.start for rows in (self._wanted, self._scored))
        logits = self.model.language.extend(self._slot, self._rows.part(part), wanted, scored)
        self._parts.pop()
        if len(wanted):
            self._logits.append(logits)
        if self._parts:
            return False
        if self._logits:
            self.result = to_host(self._read(self._logits[0] if len(self._logits) == 1 else concat(self._logits)))
        if len(self._to_keep):
            self.model.prefixes.keep(self.model.language, self._slot, self._to_keep)
        return True

    def _reuse(self, marks: np.ndarray) -> None:
        """Begin behind the rows that are known; which parts follow, and so every sum, is as without."""
        block = BLOCK * self.model.config.language.head_dim
        alone = [part.stop - 1 for part in self._parts if _ends_alone(part, block)]
        self._to_keep = marks[: min([len(marks), *self._scored[:1].tolist(), *alone])]
        known = self.model.prefixes.find(self.model.language, marks)
        count = min([known.count, *self._wanted[:1].tolist(), *self._scored[:1].tolist()])
        part = next(part for part in reversed(self._parts) if part.stop > count)
        if _ends_alone(part, block):
            count = max(part.start, part.stop - 1 - -(-(part.stop - 1 - count) // block) * block)
        elif part.start < count and _ends_alone(slice(count, part.stop), block):
            count -= 1
        if count:
            self.model.prefixes.restore(replace(known, count=count), self._slot)
            self._parts = [slice(max(part.start, count), part.stop) for part in self._parts if part.stop > count]
        self.known = count


def _ends_alone(part: slice, block: int) -> bool:
    """Whether the last row of a run is summed by other kernels than if another one followed: it is kept for nobody, and
    no other row is made one."""
    return bool((part.stop - part.start) % block == 1)


class Encode:
    """The visual features of one picture, some pieces in each run. Result: [F,C] of those that are wanted."""

    def __init__(self, model: VisionLanguageModel, picture: Pieces, wanted: np.ndarray) -> None:
        """wanted: which of the pieces, sorted; all where there is a packing."""
        self.model, self._pixels, self._wanted, self._packing = model, picture.pixels, wanted, picture.packing
        assert self._packing is None or len(wanted) == len(self._pixels), "rows may come of any of the pieces"
        self._parts: list[Array] = []
        self._done, self._key = 0, picture.digest
        self.known = 0
        """Pieces that another question has left."""

    def advance(self) -> bool:
        """One run -> whether it was the last; then there is `result`. Raises what the engine raises."""
        if not self._done and (known := self._find()) is not None:
            self.result, self.known = known, len(self._wanted)
            return True
        vision = self.model.vision
        part = self._pixels[self._done : self._done + vision.pieces_per_call]
        self._parts.append(vision.encode(part))
        self._done += len(part)
        if self._done < len(self._pixels):
            return False
        self.result = pack(self._parts[0] if len(self._parts) == 1 else concat(self._parts), self._packing)
        self.model.features.keep(self._key, self.result)
        return True

    def _find(self) -> Array | None:
        """What is known of an earlier question about the picture; if nothing is, only what is wanted is left of it."""
        features, count = self.model.features, len(self._pixels)
        known = features.get(self._key)
        if len(self._wanted) == count:
            return known
        if known is not None:
            each = len(known) // count
            return concat([known[tile * each : (tile + 1) * each] for tile in self._wanted.tolist()])
        self._pixels = self._pixels[self._wanted]
        self._key = digest_of(self._pixels)
        return features.get(self._key)


Unit = Extend | Encode
"""Work that takes several runs, of which the scheduler does one at a time."""
Work = Outside | Open | Step | Unit
"""All but the first are of a `model`."""
Result = TypeVar("Result")
Asking = Generator[Work, Any, Result]
"""What yields work, is sent the result of each, and has one itself."""


def step(works: Sequence[Step]) -> list[np.ndarray | Exception]:
    """Run the steps of one model together -> the result of each, or what was wrong with it alone.

    Raises what the engine raises; nothing has changed then. The one place where the host waits for a GPU.
    """
    language = works[0].model.language
    tokens, scored = np.array([work.token for work in works]), np.array([work.scored for work in works])
    logits = language.step([work.slot for work in works], tokens, scored)
    results: list[Any] = []
    for work, row in zip(works, logits, strict=True):
        try:
            results.append(work.read(row))
        except Exception as error:
            results.append(error)
    good = [index for index, result in enumerate(results) if not isinstance(result, Exception)]
    if good:
        ends = np.cumsum([len(results[index]) for index in good])
        on_host = to_host(concat([results[index] for index in good]))
        for index, result in zip(good, np.split(on_host, ends[:-1]), strict=True):
            results[index] = result
    return results
