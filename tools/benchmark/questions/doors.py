"""What a door costs: the same questions in process, over `sgl serve` and over Triton, taking turns."""

import random
from collections import defaultdict
from contextlib import ExitStack

import numpy as np

from tools.benchmark.bench import Bench
from tools.benchmark.doors import Ask, ask_at_once, in_process, over_http, over_triton
from tools.benchmark.interleave import Effort, Spread, spread
from tools.benchmark.pair import QUESTION, build_engines, draw_picture
from tools.benchmark.report import Row, Section, Unit, not_measured
from tools.benchmark.sizes import SEED
from tools.triton.server_environment import UnsuitableMachine

EFFORT = Effort(loads=1, runs=5)
AT_ONCE = (1, 16)
DOORS = {"in process": in_process, "sgl serve": over_http, "Triton": over_triton}
BASE = "in process"


def measure_doors(bench: Bench) -> Section:
    engines, picture = build_engines(bench), draw_picture(bench)
    size, effort, report = bench.size, bench.effort(EFFORT), bench.progress("doors")
    questions = [f"{QUESTION} {index}" for index in range(size.questions)]
    firsts: dict[tuple[str, int], list[float]] = defaultdict(list)
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    missing: dict[str, str] = {}
    order = random.Random(SEED)
    with ExitStack() as stack:
        doors: dict[str, Ask] = {}
        for name, door in DOORS.items():
            try:
                doors[name] = stack.enter_context(door(engines, picture, size.decode_tokens, bench.threads))
            except UnsuitableMachine as error:
                missing[name] = str(error)
        for ask in doors.values():
            ask_at_once(ask, questions[:2], 1)
        for turn in range(effort.runs):
            cases = [(name, at_once) for name in doors for at_once in AT_ONCE]
            order.shuffle(cases)
            for done, (name, at_once) in enumerate(cases):
                passages, total = ask_at_once(doors[name], questions, at_once)
                firsts[name, at_once].append(float(np.median([one.first for one in passages])))
                seconds[name, at_once].append(total)
                report((turn + (done + 1) / len(cases)) / effort.runs)
    rows = []
    for name in DOORS:
        for at_once in AT_ONCE:
            for what, measured in (("first text", firsts), ("time a question", seconds)):
                title = f"{what}, {name}, {at_once} at once"
                if name in missing:
                    rows.append(not_measured(title, missing[name]))
                elif name != BASE:
                    ours, base = (np.median(measured[one, at_once]) for one in (name, BASE))
                    note = f"{ours:.3f} s, in process {base:.3f}"
                    rows.append(Row(title, _ratios(measured, name, at_once), None, Unit.RATIO, note))
    setting = (
        f"The large model of the pair answers {len(questions)} questions about one picture, {size.decode_tokens} "
        "tokens, streamed; times over those of the same pipeline in this process, of all questions together."
    )
    return Section("Doors", setting, rows, [f"{effort.runs} rounds in random order; every door has its own engines."])


def _ratios(measured: dict[tuple[str, int], list[float]], name: str, at_once: int) -> Spread:
    return spread([one / base for one, base in zip(measured[name, at_once], measured[BASE, at_once], strict=True)])
