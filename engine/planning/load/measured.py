"""How long runs take on this machine, from questions that an engine answers: one alone, and more and more at once."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from engine.bindings import segment_of
from engine.planning.load.times import Line, ModelTimes, PairTimes, fitted
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Rows
from engine.runtime.question import Question

ROLES = ("small", "large")
CUT_OFF = 0.02
"""Share of the runs, the slowest next to others of their size, that say nothing of how time grows with size."""
ROUNDS = 2


@dataclass(frozen=True)
class Note:
    """A run of an engine. rows, pairs: as in `Line`."""

    role: str
    kind: str
    rows: float
    pairs: float
    start: float
    end: float

    def seconds(self) -> float:
        return self.end - self.start


class _Language:
    """A model's language engine, whose runs are written down."""

    def __init__(self, model: VisionLanguageModel, prune_layers: Sequence[int], notes: list[Note]) -> None:
        self._language, self._role, self._notes = model.language, model.role, notes
        self._prune_layers = prune_layers
        layers = model.config.language.num_layers
        segments = [segment_of(layer, prune_layers) for layer in range(layers)]
        self._shares = np.bincount(segments, minlength=len(prune_layers) + 1) / layers
        self._keys: dict[int, float] = {}
        """Of each slot, a mean over the layers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._language, name)

    def extend(self, slot: int, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> Any:
        count = float(np.dot([len(kept) for kept in rows.kept(self._prune_layers)], self._shares))
        past = self._keys.get(slot, 0.0)
        with self._noted("extend", count, count * past + count * (count + 1) / 2):
            logits = self._language.extend(slot, rows, wanted, scored)
        self._keys[slot] = past + count
        return logits

    def step(self, slots: Sequence[int], tokens: np.ndarray, scored: np.ndarray) -> Any:
        for slot in slots:
            self._keys[slot] += 1
        with self._noted("step", len(slots), sum(self._keys[slot] for slot in slots)):
            return self._language.step(slots, tokens, scored)

    def restore(self, slot: int, saved: int, count: int) -> None:
        self._language.restore(slot, saved, count)
        self._keys[slot] = self._keys.get(slot, 0.0) + count

    def visual_scores(self, slot: int) -> Any:
        with self._noted("finish", 1, 0):
            return self._language.visual_scores(slot)

    def close(self, slot: int) -> None:
        self._keys.pop(slot, None)
        self._language.close(slot)

    @contextmanager
    def _noted(self, kind: str, rows: float, pairs: float) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._notes.append(Note(self._role, kind, rows, pairs, start, time.perf_counter()))


@contextmanager
def watched(pipeline: SglPipeline, notes: list[Note]) -> Iterator[None]:
    """Runs of both models are written down meanwhile; nothing may be answered when it begins or ends."""
    before: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for model in (pipeline.small, pipeline.large):
        put(model, "language", _Language(model, pipeline.manifest.models[model.role].prune_layers, notes))
        put(model.vision, "encode", _timed(model, "encode", model.vision.encode, notes))
        put(model, "look", _timed(model, "outside", model.look, notes))
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def _timed(model: VisionLanguageModel, kind: str, function: Callable[..., Any], notes: list[Note]) -> Any:
    each = model.config.tokens_of(1)

    def run(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **named)
        end = time.perf_counter()
        # A picture that is not cut up is as many pieces as it has pixels for.
        rows = len(result) / each if kind == "encode" else 1
        notes.append(Note(model.role, kind, rows, 0.0, start, end))
        return result

    return run


def measured_times(
    pipeline: SglPipeline,
    question: Callable[[int], Question],
    at_once: Sequence[int],
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> PairTimes:
    """question: one for every number, which both models answer; at_once: how many are asked together, in rounds.

    Nobody else may ask meanwhile. Raises EngineError.
    """
    notes: list[Note] = []
    # A first question warms everything up.
    pipeline.answer_batch([question(0)])
    asked, rounds = 1, [number for _ in range(ROUNDS) for number in at_once]
    with watched(pipeline, notes):
        for done, number in enumerate(rounds):
            pipeline.answer_batch([question(asked + index) for index in range(number)])
            asked += number
            on_progress((done + 1) / len(rounds))
    return times_of(notes)


def times_of(notes: Sequence[Note]) -> PairTimes:
    """What runs that were watched took, with what came between them: in all, as long as somebody was answered."""
    runs, outside = ([note for note in notes if (note.kind == "outside") is is_outside] for is_outside in (False, True))
    after = _after(runs, outside)
    beside = _beside(runs, after)
    longer = [note if gap is None else _until_next(note, gap, beside) for note, gap in zip(runs, after, strict=True)]
    small, large = (_model_times([note for note in [*longer, *outside] if note.role == role]) for role in ROLES)
    return PairTimes(small, large, turn=beside.fixed, resume=beside.row)


def _after(runs: Sequence[Note], outside: Sequence[Note]) -> list[float | None]:
    """Seconds from the end of each run to the next; None where pictures were taken up or done meanwhile, as everybody
    may have waited for them."""
    moments = np.sort([moment for note in outside for moment in (note.start, note.end)])
    found: list[float | None] = []
    for one, following in pairwise(runs):
        first, last = np.searchsorted(moments, [one.end, following.start])
        found.append(following.start - one.end if first == last else None)
    return [*found, None]


def _beside(runs: Sequence[Note], after: Sequence[float | None]) -> Line:
    """Of the time behind steps: the scheduler's turn, and those who go on in it."""
    gaps: dict[float, list[float]] = defaultdict(list)
    for note, gap in zip(runs, after, strict=True):
        if note.kind == "step" and gap is not None:
            gaps[note.rows].append(gap)
    return fitted([(rows, 0.0, float(np.mean(some))) for rows, some in gaps.items()]) if gaps else Line()


def _until_next(note: Note, gap: float, beside: Line) -> Note:
    """With what its question does behind it, which takes longer than to go on with a step: it reads logits, ranks
    tokens, packs features."""
    more = 0.0 if note.kind == "step" else max(0.0, gap - beside.seconds(1, 0))
    return replace(note, end=note.end + more)


def _model_times(notes: Sequence[Note]) -> ModelTimes:
    lines = {
        kind: (_line([(note.rows, note.pairs, note.seconds()) for note in notes if note.kind == kind]),)
        for kind in ("step", "extend", "encode")
        if any(note.kind == kind for note in notes)
    }
    nothing = (Line(),)
    outside, finish = ([note.seconds() for note in notes if note.kind == kind] for kind in ("outside", "finish"))
    return ModelTimes(
        lines.get("step", nothing),
        lines.get("extend", nothing),
        lines.get("encode", nothing),
        float(np.mean(outside)) if outside else 0.0,
        float(np.mean(finish)) if finish else 0.0,
    )


def _line(runs: list[tuple[float, float, float]]) -> Line:
    """Shaped by the usual runs; those of all of them add up to what they took. What happens now and then happens under
    load, too, and who waits, waits for all of it."""
    line = fitted(runs)
    order = np.argsort([seconds / max(line.seconds(rows, pairs), 1e-9) for rows, pairs, seconds in runs])
    line = fitted([runs[index] for index in order[: len(runs) - int(CUT_OFF * len(runs))]])
    scale = sum(seconds for *_, seconds in runs) / max(sum(line.seconds(rows, pairs) for rows, pairs, _ in runs), 1e-9)
    return Line(line.fixed * scale, line.row * scale, line.pair * scale)
