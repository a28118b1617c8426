"""What it costs to build TensorRT-RTX plans on a machine without a GPU, and what the plans will need on one."""

import resource
import time
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from engine.build.engines import language_engine, vision_engine
from engine.build.layer_report import REPORT_SUFFIX, LayerReport
from engine.build.read_role import read_role
from engine.build.toolchains import open_compiler
from engine.config import BuildConfig
from engine.engine_directory import read_json
from engine.parallel import Shard
from engine.plugins.lowerings import LOWERINGS
from engine.target import Precision, Target
from tools.benchmark.bench import Bench
from tools.benchmark.interleave import spread
from tools.benchmark.memory_meter import status_bytes
from tools.benchmark.report import Row, Section, Unit, not_measured
from tools.benchmark.worker import Worker, WorkerError

STORED_TARGET, SCORES_TARGET = 1.05, 1.1
VISION, LANGUAGE = "vision", "language"


@dataclass(frozen=True)
class Case:
    """A plan to build."""

    part: str
    precision: Precision
    scores: bool = True

    def name(self) -> str:
        without = "" if self.scores or self.part == VISION else " without scores"
        return f"{self.part} {self.precision}{without}"


CASES = (
    Case(LANGUAGE, Precision.BF16),
    Case(LANGUAGE, Precision.BF16, scores=False),
    Case(LANGUAGE, Precision.FP16),
    Case(LANGUAGE, Precision.INT8),
    Case(LANGUAGE, Precision.INT4),
    Case(LANGUAGE, Precision.FP8),
    Case(VISION, Precision.BF16),
    Case(VISION, Precision.INT4),
)
SCORED, PLAIN = CASES[:2]


@dataclass(frozen=True)
class BuiltPlan:
    """peak_bytes: most memory of the build or its compiler, whichever had more; plan_bytes, scratch_bytes: of the plan
    and of the scoring engine's beside it, scratch memory of each phase.
    """

    seconds: float
    peak_bytes: int
    plan_bytes: int
    given_bytes: int
    scratch_bytes: tuple[int, ...]


@dataclass(frozen=True)
class PlanBuild:
    """A build the way `sgl build` does it; called, it waits to be started, in a process of its own."""

    checkpoint: Path
    out: Path
    case: Case

    def __call__(self) -> "PlanBuild":
        return self

    def build(self) -> BuiltPlan:
        started, case = time.monotonic(), self.case
        config = BuildConfig(
            self.checkpoint, self.checkpoint, self.out, target=Target.TENSORRT_RTX, precision=case.precision
        )
        role = read_role(config, "small", self.checkpoint, (), case.scores, lambda name, fraction: None)
        declare = partial(language_engine, shard=Shard()) if case.part == LANGUAGE else vision_engine
        self.out.mkdir()
        open_compiler(config).write(
            declare(config, role, LOWERINGS[config.target]), self.out, case.part, lambda fraction: None
        )
        seconds = time.monotonic() - started
        reports = [read_json(path, LayerReport) for path in self.out.glob(f"*{REPORT_SUFFIX}")]
        # The scoring plan has one phase.
        phases = zip_longest(*(report.scratch_bytes for report in reports), fillvalue=0)
        plans = list(self.out.glob(f"*{config.target.traits.suffix}"))
        plan_bytes = sum(plan.stat().st_size for plan in plans)
        for plan in plans:
            plan.unlink()
        # Not RUSAGE_SELF: that starts with what the process had that started this one.
        compiler_peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak, given = max(status_bytes("VmHWM"), compiler_peak), sum(report.given_bytes for report in reports)
        return BuiltPlan(seconds, peak, plan_bytes, given, tuple(map(sum, phases)))


def measure_plans(bench: Bench) -> Section:
    model, progress = bench.model("small", bench.size.small), bench.progress("plans")
    built: dict[Case, BuiltPlan] = {}
    rows = []
    for index, case in enumerate(CASES):
        progress(index / len(CASES))
        try:
            with Worker(PlanBuild(model.directory, bench.work / f"plan-{index}", case)) as worker:
                built[case] = worker.call("build").result
        except WorkerError as error:
            rows.append(not_measured(case.name(), str(error), STORED_TARGET))
            continue
        rows += _case_rows(case, built[case])
    progress(1.0)
    if SCORED in built and PLAIN in built:
        rows += _score_rows(built[SCORED], built[PLAIN])
    limits = BuildConfig(model.directory, model.directory, model.directory)
    return Section(
        "TensorRT-RTX plans built without a GPU",
        f"Plans for {limits.tokens():,} tokens and {limits.max_batch} questions at once, each in a fresh process: "
        "hashing the checkpoint, streaming and quantizing the weights, compiling both phases. Weight bytes are those "
        "that the compiler is given, in the plan's precision.",
        rows,
        ["Scratch memory is what the compiler plans for the largest call of a phase; nothing was run."],
    )


def _case_rows(case: Case, plan: BuiltPlan) -> list[Row]:
    given = plan.given_bytes
    scratch = " and ".join(f"{size / 2**20:,.0f}" for size in plan.scratch_bytes)
    sizes = f"{plan.plan_bytes / 1e6:,.0f} MB of {given / 1e6:,.0f} MB weights; scratch {scratch} MiB"
    return [
        Row(f"{case.name()}: plan over weights", spread([plan.plan_bytes / given]), STORED_TARGET, note=sizes),
        Row(f"{case.name()}: time", spread([plan.seconds]), unit=Unit.SECONDS),
        Row(
            f"{case.name()}: peak memory over weights",
            spread([plan.peak_bytes / given]),
            note=f"{plan.peak_bytes / 2**20:,.0f} MiB",
        ),
    ]


def _score_rows(scored: BuiltPlan, plain: BuiltPlan) -> list[Row]:
    plans = spread([scored.plan_bytes / plain.plan_bytes])
    most = spread([max(scored.scratch_bytes) / max(plain.scratch_bytes)])
    return [
        Row("scores on over off: plan", plans, SCORES_TARGET),
        Row("scores on over off: scratch memory", most, SCORES_TARGET, note="of the phase that needs most"),
    ]
