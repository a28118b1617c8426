"""Two ranks with a thread each next to one rank with one thread, and what building a rank's share needs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from engine.build.builder import build_pair
from engine.build.checkpoint import Checkpoint
from engine.config import BuildConfig
from tools.benchmark.bench import Bench
from tools.benchmark.engines import build_language
from tools.benchmark.interleave import (
    DECODE,
    PREFILL,
    Effort,
    Spread,
    Workload,
    collect_logits,
    compare_logits,
    run_interleaved,
    spread,
)
from tools.benchmark.memory_meter import status_bytes
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.runners import ShardedEngine
from tools.benchmark.sizes import TINY, make_answer, make_prompt
from tools.benchmark.worker import Worker, WorkerError

RANKS = 2
EFFORT = Effort(loads=2, runs=3)
TOLERANCE = 1e-4
ONE, TWO, THREADS = "one rank, one thread", "two ranks, one thread each", "one rank, two threads"
FLOAT32_BYTES = 4


def measure_tensor_parallel(bench: Bench) -> Section:
    size, guide = bench.size, bench.model("guide", TINY)
    vision = size.small["vision_config"] | {"num_hidden_layers": 1}  # it is not measured
    model = bench.model("shared", size.small | {"vision_config": vision})
    build = BuildConfig(guide.directory, model.directory, bench.work / "ranks", prune_layers=(), world_size=RANKS)
    # A rank alone and in a fresh process: what it needs is what it ever had.
    with Worker(RankBuild(build)) as worker:
        peak = worker.call("build").result
    build_pair(build, bench.on_progress)
    one = build_language(model, bench.work / "one rank", 1, bench.progress(f"engine {ONE}"))
    subjects: dict[str, Callable[[], Any]] = {
        ONE: one,
        TWO: ShardedEngine(build.out, RANKS),
        THREADS: replace(one, threads=min(RANKS, bench.threads)),
    }
    prompt = make_prompt(model.config, size.short)
    workload = Workload(f"{len(prompt.ids):,}", prompt, make_answer(model.config, size.decode_tokens))
    with Worker(subjects[ONE]) as alone, Worker(subjects[TWO]) as two:
        agreement = compare_logits(collect_logits(two, [workload]), collect_logits(alone, [workload]))
        if not agreement.same_top or agreement.max_difference > TOLERANCE:
            raise WorkerError(f"two ranks compute other logits than one: {agreement}")
        shares = _sum_shares(two, workload, bench.effort(EFFORT).runs)
    effort = bench.effort(EFFORT)
    timings = run_interleaved(subjects, [workload], effort, bench.progress("tensor parallel"))
    rows = []
    for phase, what in ((PREFILL, f"prefill of {workload.name} tokens"), (DECODE, f"decode of {len(workload.answer)}")):
        for subject in (TWO, THREADS):
            seconds = [timings.spread(workload.name, phase, name).median for name in (subject, ONE)]
            note = "{:,.1f} ms against {:,.1f} ms".format(*(1000 * value for value in seconds))
            rows.append(Row(f"{what}: {subject}", timings.ratio(workload.name, phase, subject, ONE), note=note))
        rows.append(Row(f"{what}: share of all-reduces", shares[phase], unit=Unit.SHARE, note="waiting included"))
    return Section(
        "Tensor parallel",
        f"Time of the large model's language engine over the time of {ONE}. The two ranks are processes that meet at "
        f"{2 * model.config.language.num_layers + 1} all-reduces a call; calls and logits go through a socket.",
        [*rows, *_memory_rows(peak, Checkpoint(model.directory))],
        [
            f"{effort.loads} loads of each subject in fresh processes, {effort.runs} rounds each in random order.",
            f"Largest difference of the logits: {agreement.max_difference:.1e}.",
        ],
    )


def _sum_shares(worker: Worker, workload: Workload, runs: int) -> dict[str, Spread]:
    """Of rank 0's time, by phase."""
    shares: dict[str, list[float]] = {PREFILL: [], DECODE: []}
    for _ in range(runs):
        for phase, arguments in workload.calls():
            before = worker.call("seconds_in_sums").result
            seconds = worker.call(phase, *arguments).seconds
            shares[phase].append((worker.call("seconds_in_sums").result - before) / seconds)
    return {phase: spread(values) for phase, values in shares.items()}


@dataclass(frozen=True)
class Peak:
    """Resident bytes of a process: once it has imported what builds, and the most that it had after building."""

    before: int
    after: int


@dataclass(frozen=True)
class RankBuild:
    """The build of the last rank's share; called, it is ready to start."""

    pair: BuildConfig

    def __call__(self) -> "RankBuild":
        return self

    def build(self) -> Peak:
        before = status_bytes("VmRSS")
        build_pair(replace(self.pair, rank=RANKS - 1))
        return Peak(before, status_bytes("VmHWM"))


def _memory_rows(peak: Peak, checkpoint: Checkpoint) -> list[Row]:
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    sizes = {name: FLOAT32_BYTES * math.prod(shape) for name, shape in shapes.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    share = (peak.after - peak.before) / (2 * sizes[largest])
    return [
        Row("peak resident memory of building one rank's share", spread([peak.after]), unit=Unit.MIB),
        Row("of it before the build starts", spread([peak.before]), unit=Unit.MIB, note="interpreter and libraries"),
        Row(
            "added by building, over two of the largest tensors",
            spread([share]),
            target=1.0,
            note=f"{largest} in float32: {sizes[largest] / 2**20:,.0f} MiB",
        ),
    ]
