"""The cascade behind a Triton Inference Server, next to the large model alone behind the same server."""

import base64
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmark.bench import Bench
from tools.benchmark.interleave import Effort, spread
from tools.benchmark.load import Load, measure_load
from tools.benchmark.pair import QUESTION, build_engines, draw_picture
from tools.benchmark.report import Row, Section, not_measured
from tools.benchmark.sizes import SEED
from tools.export_triton_repository import write_repository
from tools.triton.serve_config import ServeConfig
from tools.triton.server_environment import ServerError
from tools.triton.server_process import serve
from tools.triton.tensors import LARGE, SGL

EFFORT = Effort(loads=1, runs=2)
CONCURRENCIES = (1, 4, 16)
EXIT_RATIOS = (0.0, 0.4, 0.6)
ALWAYS, NEVER = 0.0, 2.0
"""Thresholds of questions that exit early, and of those that do not."""
Case = tuple[float | None, int]
"""Exit ratio, None for the large model alone, and how many questions at once."""


def measure_serving(bench: Bench) -> Section:
    engines, picture = build_engines(bench), draw_picture(bench)
    repository, size, effort = bench.work / "repository", bench.size, bench.effort(EFFORT)
    config = ServeConfig(threads=bench.threads, max_tokens=size.decode_tokens)
    write_repository(engines, repository, config, link=True)
    asked = {"text_input": QUESTION, "image_url_input": [_data_url(picture)]}
    rows: list[Row] = []
    remarks = [f"{effort.loads} starts of the server, {effort.runs} rounds of {size.questions} questions each."]
    try:
        loads = _measure(bench, repository, asked, effort)
    except ServerError as error:
        rows = [not_measured(_title(ratio, number), str(error)) for ratio in EXIT_RATIOS for number in CONCURRENCIES]
    else:
        rows = [_row(ratio, number, loads) for ratio in EXIT_RATIOS for number in CONCURRENCIES]
        remarks += [f"Large alone, {number} at once: {_describe(loads[None, number])}." for number in CONCURRENCIES]
    return Section(
        "Serving",
        "Questions per second that `sgl` answers over those of `large_vlm`, asked without importance so that it keeps "
        "every visual token, both behind one Triton Inference Server on this machine, over HTTP. A fixed share of the "
        f"questions exits early, by its threshold. {size.decode_tokens} tokens are answered; guidance as built.",
        rows,
        remarks,
    )


def _measure(bench: Bench, repository: Path, asked: dict[str, Any], effort: Effort) -> dict[Case, list[Load]]:
    """A load per round of each case. Raises ServerError."""
    loads: dict[Case, list[Load]] = defaultdict(list)
    order, count, report = random.Random(SEED), bench.size.questions, bench.progress("serving")
    report(0.0)
    for start in range(effort.loads):
        with serve(repository, bench.work) as server:
            for turn in range(effort.runs):
                cases: list[Case] = [(ratio, number) for ratio in (None, *EXIT_RATIOS) for number in CONCURRENCIES]
                order.shuffle(cases)
                for done, (ratio, number) in enumerate(cases):
                    if ratio is None:
                        load = measure_load(server.url, LARGE.name, [asked] * count, number)
                    else:
                        exits = round(ratio * count)
                        thresholds = [ALWAYS] * exits + [NEVER] * (count - exits)
                        order.shuffle(thresholds)
                        questions = [asked | {"exit_threshold": threshold} for threshold in thresholds]
                        load = measure_load(server.url, SGL.name, questions, number)
                    loads[ratio, number].append(load)
                    report((start + (turn + (done + 1) / len(cases)) / effort.runs) / effort.loads)
    return loads


def _row(ratio: float, number: int, loads: dict[Case, list[Load]]) -> Row:
    ours, alone = loads[ratio, number], loads[None, number]
    gains = [a.throughput() / b.throughput() for a, b in zip(ours, alone, strict=True)]
    return Row(_title(ratio, number), spread(gains), note=_describe(ours))


def _title(ratio: float, number: int) -> str:
    return f"{ratio:.0%} exit early, {number} at once"


def _describe(loads: list[Load]) -> str:
    throughput = spread([load.throughput() for load in loads]).median
    p50, p99 = np.percentile([seconds for load in loads for seconds in load.latencies], (50, 99))
    return f"{throughput:.2f} questions/s, p50 {p50:.2f} s, p99 {p99:.2f} s"


def _data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
