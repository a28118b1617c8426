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
from tools.benchmark.interleave import SETTLE_SECONDS, Effort, Spread, spread
from tools.benchmark.report import Row, Section, not_measured
from tools.benchmark.towers import LAYERS, TOWERS, OurTower, TorchTower, Tower, build_tower, picture, write_tower
from tools.benchmark.worker import Worker, WorkerError

EFFORT = Effort(loads=1, runs=5)
OURS, PEERS = "sgl-engine", ("transformers", "OpenVINO")
TOLERANCE = 0.9999
"""Least cosine of features to ours: of the same computation."""


def measure_towers(bench: Bench) -> Section:
    rows: list[Row] = []
    for tower in TOWERS:
        rows += _measure(bench, tower)
    return Section(
        "Vision encoders next to others, fp32",
        "Time of our vision encoder over the time of the other on the same random float32 weights of published widths, "
        f"{LAYERS} layers each (of Qwen2.5-VL's, one sees the whole picture) and the projector; one square picture or "
        f"tile, each in its own process with {bench.threads} threads; the other waits asleep. In the remarks: "
        "milliseconds for each 1,000 patches.",
        rows,
        ["OpenVINO: transformers' module, converted by it and compiled for the CPU in float32."],
    )


def _measure(bench: Bench, tower: Tower) -> list[Row]:
    progress = bench.progress(tower.name)
    directory, built = bench.work / tower.model_type, bench.work / f"{tower.model_type}-built"
    # In a process of its own: what it imports must not stay here.
    with Worker(partial(write_tower, tower, LAYERS, directory)):
        progress(0.1)
    build_tower(directory, built)
    pixels, patches = picture(tower, directory), (tower.side // tower.patch) ** 2
    subjects: dict[str, Callable[[], Any]] = {
        OURS: OurTower(directory, built, bench.threads),
        PEERS[0]: TorchTower(directory, tower.model_type, bench.threads),
        PEERS[1]: TorchTower(directory, tower.model_type, bench.threads, is_openvino=True),
    }
    reasons: dict[str, str] = {}
    if importlib.util.find_spec("openvino") is None:
        reasons[PEERS[1]] = "not installed: no package openvino"
        del subjects[PEERS[1]]
    times = _times(subjects, pixels, bench.effort(EFFORT), reasons, progress)
    return [_row(tower, peer, times, reasons, patches) for peer in PEERS]


def _times(
    subjects: Mapping[str, Callable[[], Any]],
    pixels: np.ndarray,
    effort: Effort,
    reasons: dict[str, str],
    progress: Callable[[float], None],
) -> dict[str, list[float]]:
    """Seconds by subject, entry i of each of the same round. reasons: gets those of the ones that could not be run."""
    order, times = random.Random(0), dict[str, list[float]]()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        expected = None
        for name, subject in subjects.items():
            try:
                worker = stack.enter_context(Worker(subject))
                # The first run pages weights in and converts; it does not count.
                features = worker.call("encode", pixels).result[: None if expected is None else len(expected)]
            except WorkerError as error:
                reasons[name] = str(error).splitlines()[0][:200] if str(error) else "its process failed"
                continue
            expected = features if expected is None else expected
            shared = min(len(features), len(expected))
            if _cosine(features[:shared], expected[:shared]) < TOLERANCE:
                reasons[name] = "it computes other features than ours"
                continue
            workers[name], times[name] = worker, []
        for turn in range(effort.runs):
            names = list(workers)
            order.shuffle(names)
            for name in names:
                time.sleep(SETTLE_SECONDS)
                times[name].append(workers[name].call("encode", pixels).seconds)
            progress(0.2 + 0.8 * (turn + 1) / effort.runs)
    return times


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def _row(tower: Tower, peer: str, times: Mapping[str, list[float]], reasons: Mapping[str, str], patches: int) -> Row:
    what = f"{tower.name}, {patches:,} patches, next to {peer}"
    if peer in reasons:
        return not_measured(what, reasons[peer])
    ratio: Spread = spread(list(np.array(times[OURS]) / np.array(times[peer])))
    ours, theirs = (1e6 * float(np.median(times[name])) / patches for name in (OURS, peer))
    return Row(what, ratio, note=f"{ours:,.0f} ms ours, {theirs:,.0f} ms theirs")
