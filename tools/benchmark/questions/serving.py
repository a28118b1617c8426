"""Many questions at once: against one at a time, against the large model alone, and short ones beside long ones."""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.benchmark.bench import Bench
from tools.benchmark.interleave import Effort, Spread, spread
from tools.benchmark.load import Asked, Load, LoadServing
from tools.benchmark.pair import QUESTION, build_engines, draw_picture
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.sizes import SEED
from tools.benchmark.worker import Worker

EFFORT = Effort(loads=1, runs=3)
AT_ONCE = (4, 16, 64)
EXIT_RATIOS = (0.0, 0.4, 0.6)
SHARED = 16
"""Questions at once where the cascade meets the large model alone."""
CAPACITIES = (0.5, 0.8, 0.95)
"""Arrivals of the mixture, over what is answered when questions always wait."""
LONG, SHORT = 48, 4
"""Tokens of an answer, times the size's."""
TARGETS = {16: 0.4}
"""Time a token of so many at once over one at a time: at least 2.5 times the tokens a second."""
FIRST_TEXT = 0.25
"""95th percentile of a short question's wait for its first text beside long ones, over one at a time."""


def measure_serving(bench: Bench) -> Section:
    engines, picture = build_engines(bench), draw_picture(bench)
    size, effort, report = bench.size, bench.effort(EFFORT), bench.progress("serving")
    count, long = size.questions, LONG * size.decode_tokens // 8
    talk = [Asked(f"{QUESTION} {index}", None, long, None) for index in range(count)]
    alone = [Asked(f"{QUESTION} {index}", picture, size.decode_tokens, None) for index in range(count)]
    mixture = [
        Asked(f"{QUESTION} {index}", None, long if index % 4 == 0 else SHORT, None) for index in range(2 * count)
    ]
    loads: dict[str, list[Load]] = defaultdict(list)
    order = random.Random(SEED)
    for start in range(effort.loads):
        with (
            Worker(LoadServing(engines, bench.threads, max_running=1)) as single,
            Worker(LoadServing(engines, bench.threads, max_running=max(AT_ONCE))) as many,
        ):
            capacity = many.call("closed", mixture, SHARED).result.questions_per_second()
            single.call("closed", alone[:1], 1)
            for turn in range(effort.runs):
                cases: list[tuple[str, Worker, str, tuple[Any, ...]]] = [("one", single, "closed", (talk, 1))]
                cases += [(f"talk {number}", many, "closed", (talk, number)) for number in AT_ONCE]
                cases += [("alone", many, "closed", (alone, SHARED))]
                for ratio in EXIT_RATIOS:
                    exits = [True] * round(ratio * count) + [False] * (count - round(ratio * count))
                    order.shuffle(exits)
                    asked = [
                        Asked(one.question, picture, one.tokens, exit) for one, exit in zip(alone, exits, strict=True)
                    ]
                    cases.append((f"exits {ratio}", many, "closed", (asked, SHARED)))
                for share in CAPACITIES:
                    arguments = mixture, share * capacity, turn
                    cases += [
                        (f"{name} {share}", worker, "arriving", arguments)
                        for name, worker in (("queue", single), ("mixed", many))
                    ]
                order.shuffle(cases)
                for done, (name, worker, method, given) in enumerate(cases):
                    loads[name].append(worker.call(method, *given).result)
                    report((start + (turn + (done + 1) / len(cases)) / effort.runs) / effort.loads)
    return Section("Serving", _setting(long, size.decode_tokens, count), _rows(loads), _remarks(loads, effort))


def _setting(long: int, tokens: int, count: int) -> str:
    return (
        f"{count} questions to one pipeline. Tokens: the large model alone answers {long} tokens to questions of "
        f"words. Cascade: {SHARED} questions at once about a picture that both models have seen, {tokens} tokens, a "
        "fixed share exits early, over the large model alone on the same pipeline. First text: a fourth of the "
        f"questions wants {long} tokens, the others {SHORT}; they come at random, at a share of what is answered when "
        f"{SHARED} always wait; over a pipeline that answers one at a time."
    )


def _rows(loads: dict[str, list[Load]]) -> list[Row]:
    rows = []
    for number in AT_ONCE:
        ratios = _ratios(loads["one"], loads[f"talk {number}"], Load.tokens_per_second)
        note = f"{_median(loads[f'talk {number}']):.1f} tokens/s, one at a time {_median(loads['one']):.1f}"
        rows.append(Row(f"time a token, {number} at once over one at a time", ratios, TARGETS.get(number), note=note))
    for ratio in EXIT_RATIOS:
        ratios = _ratios(loads["alone"], loads[f"exits {ratio}"], Load.questions_per_second)
        rows.append(Row(f"time a question, {ratio:.0%} exit early, over the large model alone", ratios))
    for share in CAPACITIES:
        first = [[_first_text(load) for load in loads[f"{name} {share}"]] for name in ("mixed", "queue")]
        ratios = spread([ours / theirs for ours, theirs in zip(*first, strict=True)])
        note = f"{np.median(first[0]):.2f} s, one at a time {np.median(first[1]):.2f} s"
        rows.append(
            Row(f"first text of short questions, p95, at {share:.0%} of capacity", ratios, FIRST_TEXT, Unit.RATIO, note)
        )
    return rows


def _remarks(loads: dict[str, list[Load]], effort: Effort) -> list[str]:
    alone = spread([load.questions_per_second() for load in loads["alone"]]).median
    return [
        f"{effort.loads} starts, {effort.runs} rounds in random order.",
        f"The large model alone, {SHARED} at once: {alone:.2f} questions/s.",
    ]


def _ratios(base: list[Load], ours: list[Load], rate: Callable[[Load], float]) -> Spread:
    return spread([rate(one) / rate(other) for one, other in zip(base, ours, strict=True)])


def _median(loads: list[Load]) -> float:
    return spread([load.tokens_per_second() for load in loads]).median


def _first_text(load: Load) -> float:
    """95th percentile over the short questions."""
    return float(np.percentile([one.first for one in load.served if one.tokens <= SHORT], 95))
