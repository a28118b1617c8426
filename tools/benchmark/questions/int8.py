"""Our int8 language engine next to our fp32 one."""

import json
from pathlib import Path

from engine.build.targets.onnxruntime import REPORT_SUFFIX
from engine.cli.info import quantization_text
from engine.target import Precision
from tools.benchmark.bench import Bench
from tools.benchmark.engines import build_language
from tools.benchmark.interleave import (
    DECODE,
    PREFILL,
    Effort,
    Workload,
    collect_logits,
    compare_logits,
    run_interleaved,
    spread,
)
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.sizes import make_answer, make_prompt
from tools.benchmark.worker import Worker

TARGETS = {PREFILL: 0.5, DECODE: 0.4}
EFFORT = Effort(loads=3, runs=5)


def measure_int8(bench: Bench) -> Section:
    model, size = bench.model("small", bench.size.small), bench.size
    exact = build_language(model, bench.work / "plain", bench.threads, bench.progress("engine without scores"))
    progress = bench.progress("engine int8")
    quantized = build_language(model, bench.work / "int8", bench.threads, progress, precision=Precision.INT8)
    answer = make_answer(model.config, size.decode_tokens)
    prompts = [make_prompt(model.config, prompt) for prompt in (size.short, size.long)]
    workloads = [Workload(f"{len(prompt.ids):,}", prompt, answer) for prompt in prompts]
    with Worker(exact) as worker:
        expected = collect_logits(worker, workloads)
    with Worker(quantized) as worker:
        agreement = compare_logits(collect_logits(worker, workloads), expected)
    subjects = {"int8": quantized, "fp32": exact}
    timings = run_interleaved(subjects, workloads, bench.effort(EFFORT), bench.progress("int8"))
    report = json.loads(quantized.path.with_suffix(REPORT_SUFFIX).read_text(encoding="utf-8"))
    rows = []
    for workload in workloads:
        for phase, what in (
            (PREFILL, f"prefill of {workload.name} tokens"),
            (DECODE, f"decode of {len(answer)} tokens after {workload.name}"),
        ):
            ours, theirs = (1000 * timings.spread(workload.name, phase, name).median for name in subjects)
            ratio = timings.ratio(workload.name, phase, "int8", "fp32")
            rows.append(Row(what, ratio, TARGETS[phase], note=f"{ours:,.1f} ms int8, {theirs:,.1f} ms fp32"))
    rows.append(
        Row(
            "last logits, worst of these prompts and decodes",
            spread([agreement.cosine]),
            unit=Unit.COSINE,
            note="random weights; accuracy is judged on trained ones",
        )
    )
    return Section(
        "int8 next to fp32",
        "Time of our int8 language engine over the time of our fp32 one of the same checkpoint.",
        rows,
        [
            f"Quantization report: {quantization_text(report)}.",
            f"Weights on disk: {_megabytes(quantized.path):,.0f} MB int8, {_megabytes(exact.path):,.0f} MB fp32.",
        ],
    )


def _megabytes(path: Path) -> float:
    return path.with_suffix(".weights").stat().st_size / 1e6
