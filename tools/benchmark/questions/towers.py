"""Vision encoders next to transformers' own and to OpenVINO of those, on the same weights."""

import importlib.util
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from tools.benchmark.bench import Bench
from tools.benchmark.interleave import SETTLE_SECONDS, Effort, spread
from tools.benchmark.report import Row, Section, not_measured
from tools.benchmark.tower_sizes import Tower
from tools.benchmark.towers import PEERS, OurEncoder, build_tower, picture, tower_directory, write_towers
from tools.benchmark.worker import Worker, WorkerError

EFFORT = Effort(loads=1, runs=9)
OURS = "sgl-engine"
TOLERANCE = 0.9999
"""Least cosine of features to ours: of the same computation."""


def measure_towers(bench: Bench) -> Section:
    # In a process of its own: what it imports must not stay here.
    with Worker(partial(write_towers, bench.size.towers, bench.work)):
        pass
    rows = [row for tower in bench.size.towers for row in _measure(bench, tower)]
    layers = bench.size.towers[0].layers
    return Section(
        "Vision encoders next to others, fp32",
        "Time of our vision encoder over the time of the other on the same random float32 weights of published widths, "
        f"{layers} layers each (of Qwen2.5-VL's, one sees the whole picture) and the projector; one square picture or "
        f"tile, each in its own process with {bench.threads} threads; the other waits asleep. In the remarks: "
        "milliseconds for each 1,000 patches.",
        rows,
        ["OpenVINO: transformers' module, converted by it and compiled for the CPU in float32."],
    )


def _measure(bench: Bench, tower: Tower) -> list[Row]:
    progress = bench.progress(tower.name)
    directory, engine = tower_directory(bench.work, tower), bench.work / f"{tower.model_type}.onnx"
    build_tower(directory, engine)
    subjects: dict[str, Callable[[], Any]] = {OURS: partial(OurEncoder, engine, directory, bench.threads)}
    reasons: dict[str, str] = {}
    for peer in PEERS:
        if importlib.util.find_spec(peer.module) is None:
            reasons[peer.name] = f"not installed: no package {peer.package}"
        else:
            subjects[peer.name] = partial(peer.load, directory, bench.threads)
    pixels = picture(tower, directory)
    times = _times(subjects, pixels, bench.effort(EFFORT), reasons, progress)
    return [_row(tower, peer.name, times, reasons) for peer in PEERS]


def _times(
    subjects: Mapping[str, Callable[[], Any]],
    pixels: np.ndarray,
    effort: Effort,
    reasons: dict[str, str],
    progress: Callable[[float], None],
) -> dict[str, list[float]]:
    """Seconds by subject, ours first, entry i of each of the same round. reasons: gets those of peers that fail."""
    order, times = random.Random(0), dict[str, list[float]]()
    for _ in range(effort.loads):
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            expected: np.ndarray | None = None
            for name, subject in subjects.items():
                try:
                    worker = stack.enter_context(Worker(subject))
                    # The first run pages weights in and converts; it does not count.
                    features = worker.call("encode", pixels).result
                except WorkerError as error:
                    if name == OURS:
                        raise
                    reasons[name] = str(error).partition("\n")[0]
                    continue
                expected = features if expected is None else expected
                if _cosine(features, expected) < TOLERANCE:
                    reasons[name] = "it computes other features than ours"
                    continue
                workers[name] = worker
            names = list(workers)
            for turn in range(effort.runs):
                order.shuffle(names)
                for name in names:
                    time.sleep(SETTLE_SECONDS)
                    times.setdefault(name, []).append(workers[name].call("encode", pixels).seconds)
                progress((turn + 1) / effort.runs)
    return times


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    """[V,C] both; ours may have rows behind those that show something."""
    shown = min(len(one), len(other))
    one, other = one[:shown], other[:shown]
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def _row(tower: Tower, peer: str, times: Mapping[str, list[float]], reasons: Mapping[str, str]) -> Row:
    what = f"{tower.name}, {tower.patches():,} patches, next to {peer}"
    if peer in reasons:
        return not_measured(what, reasons[peer])
    ratio = spread(list(np.array(times[OURS]) / np.array(times[peer])))
    ours, theirs = (1e6 * float(np.median(times[name])) / tower.patches() for name in (OURS, peer))
    return Row(what, ratio, note=f"{ours:,.0f} ms ours, {theirs:,.0f} ms theirs")
