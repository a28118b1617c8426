"""A question about pictures from end to end: SGL over the large model alone, on the same engines."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tools.benchmark.bench import Bench
from tools.benchmark.end_to_end import LoadEndToEnd, Pictures, Timed
from tools.benchmark.interleave import Effort, Spread, spread
from tools.benchmark.pair import build_engines
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.sizes import SEED
from tools.benchmark.worker import Worker

EFFORT = Effort(loads=1, runs=1)
PICTURES = (
    Pictures("7 tiles", wide=3, high=2),
    Pictures("13 tiles", wide=4, high=3),
    Pictures("four pictures", count=4),
    Pictures("7 tiles again", wide=3, high=2, again=True),
)
RETENTIONS = (0.64, 0.35, 0.09)
"""Of the first pictures; of the others the middle one."""
EXIT_RATIOS = (0.0, 0.4, 0.6)
LENGTHS = (10, 100)
PAPER = "the paper, InternVL2-2B with 76B at 64 % and 40 % of exits: 1.75 times as fast, 0.571"


@dataclass(frozen=True)
class Case:
    """retention: None is the large model alone."""

    pictures: Pictures
    retention: float | None
    exits: bool = False


def cases() -> list[Case]:
    """What is run: an exit and no exit are measured each, and shares of them are made of these."""
    found = []
    for index, pictures in enumerate(PICTURES):
        retentions = RETENTIONS if index == 0 else RETENTIONS[1:2]
        found += [Case(pictures, None), Case(pictures, retentions[0], exits=True)]
        found += [Case(pictures, retention) for retention in retentions]
    return found


def measure_end_to_end(bench: Bench) -> Section:
    engines, effort, report = build_engines(bench), bench.effort(EFFORT), bench.progress("end to end")
    lengths = tuple(min(length, 5 * bench.size.decode_tokens) for length in LENGTHS)
    timed: dict[Case, list[Timed]] = defaultdict(list)
    order, wanted = random.Random(SEED), cases()
    for load in range(effort.loads):
        with Worker(LoadEndToEnd(engines, bench.threads, bench.size.small["force_image_size"])) as worker:
            # A first question pages weights in; it does not count.
            worker.call("ask", PICTURES[2], RETENTIONS[0], False, 1)
            for turn in range(effort.runs):
                order.shuffle(wanted)
                for done, case in enumerate(wanted):
                    arguments = case.pictures, case.retention, case.exits, lengths[-1]
                    timed[case].append(worker.call("ask", *arguments).result)
                    report((load + (turn + (done + 1) / len(wanted)) / effort.runs) / effort.loads)
    rows = [row for pictures in PICTURES for row in _rows(pictures, timed, lengths)]
    peak = max(one.peak_bytes for some in timed.values() for one in some)
    rows.append(Row("peak resident memory of both models", spread([peak]), unit=Unit.MIB))
    return Section(
        "End to end",
        "Time of a question to the pair over the time of the large model alone, unpruned, on the same engines in the "
        f"same process, float32. Answers have {lengths[-1]} tokens; times of {lengths[0]} are those less what the "
        "tokens behind them took. Exits are forced by the threshold: of an exit and of no exit, each measured, times "
        f"are added up by their share. Retention is an average over the layers. {PAPER}.",
        rows,
        [_stages(timed, PICTURES[0]), f"{effort.loads} starts, {effort.runs} rounds in random order."],
    )


def _rows(pictures: Pictures, timed: dict[Case, list[Timed]], lengths: Sequence[int]) -> list[Row]:
    alone = timed[Case(pictures, None)]
    exited = next(some for case, some in timed.items() if case.pictures == pictures and case.exits)
    measured = [case for case in timed if case.pictures == pictures and not case.exits and case.retention is not None]
    rows = []
    for case in sorted(measured, key=lambda case: -(case.retention or 0)):
        for ratio in EXIT_RATIOS:
            name = f"{pictures.name}, {case.retention:.0%} kept, {ratio:.0%} exit"
            figures: list[tuple[str, Callable[[Timed], float]]] = [
                ("first text", lambda one: one.first_of(lengths[0])),
                *((f"{length} tokens", lambda one, length=length: one.after(length)) for length in lengths),
            ]
            for what, seconds in figures:
                rows.append(_row(f"{name}: {what}", seconds, ratio, timed[case], exited, alone))
    return rows


def _row(
    what: str,
    seconds: Callable[[Timed], float],
    ratio: float,
    going_on: Sequence[Timed],
    exited: Sequence[Timed],
    alone: Sequence[Timed],
) -> Row:
    ours = [ratio * seconds(one) + (1 - ratio) * seconds(other) for one, other in zip(exited, going_on, strict=True)]
    theirs = [seconds(one) for one in alone]
    ratios: Spread = spread([mine / other for mine, other in zip(ours, theirs, strict=True)])
    return Row(what, ratios, note=f"{np.median(ours):.2f} s, alone {np.median(theirs):.2f} s")


def _stages(timed: dict[Case, list[Timed]], pictures: Pictures) -> str:
    """Of the last question of each case, in seconds."""
    parts = []
    for case, some in timed.items():
        if case.pictures == pictures:
            name = "alone" if case.retention is None else f"{case.retention:.0%}{', exit' if case.exits else ''}"
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in some[-1].stages.items())
            parts.append(f"{name}: {stages}")
    return f"Seconds by stage, {pictures.name}: " + "; ".join(sorted(parts)) + "."
