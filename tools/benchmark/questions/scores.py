"""What it costs the small model to emit the attention that visual tokens receive."""

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
)
from tools.benchmark.report import Row, Section
from tools.benchmark.sizes import make_answer, make_prompt
from tools.benchmark.worker import Worker, WorkerError

TARGET = 1.02
EFFORT = Effort(loads=8, runs=3)
"""Many loads: a process keeps the luck of its memory placement for life, a few per cent either way."""
TOLERANCE = 1e-3
"""Of logits, whose standard deviation is about 1."""
PLAIN, AGAIN, SCORED = "without scores", "without scores, again", "with scores"


def measure_scores(bench: Bench) -> Section:
    model, size = bench.model("small", bench.size.small), bench.size
    engines = {
        name: build_language(model, bench.work / out, bench.threads, bench.progress(f"engine {name}"), scores)
        for name, out, scores in ((PLAIN, "plain", False), (SCORED, "scored", True))
    }
    answer = make_answer(model.config, size.decode_tokens)
    prompts = [make_prompt(model.config, prompt) for prompt in (size.short, size.long)]
    workloads = [Workload(f"{len(prompt.ids):,}", prompt, answer) for prompt in prompts]
    with Worker(engines[PLAIN]) as worker:
        expected = collect_logits(worker, workloads)
    with Worker(engines[SCORED]) as worker:
        agreement = compare_logits(collect_logits(worker, workloads), expected)
        received = worker.call("visual_scores").result
    if not agreement.same_top or agreement.max_difference > TOLERANCE:
        raise WorkerError(f"the engine with scores computes other logits than the one without: {agreement}")
    if not (received > 0).all():
        raise WorkerError("the engine with scores emits none")
    subjects = {PLAIN: engines[PLAIN], AGAIN: engines[PLAIN], SCORED: engines[SCORED]}
    effort = bench.effort(EFFORT)
    timings = run_interleaved(subjects, workloads, effort, bench.progress("scores"))
    rows = []
    for workload, prompt in zip(workloads, (size.short, size.long), strict=True):
        visual = len(workload.prompt.visual_positions)
        for phase, what in (
            (PREFILL, f"prefill of {workload.name} tokens, {visual:,} visual ({prompt.tiles} tiles)"),
            (DECODE, f"decode of {len(answer)} tokens after {workload.name}"),
        ):
            seconds = [timings.spread(workload.name, phase, name).median for name in (SCORED, PLAIN)]
            scored = timings.ratio(workload.name, phase, SCORED, PLAIN, AGAIN)
            note = "{:,.1f} ms with, {:,.1f} ms without".format(*(1000 * value for value in seconds))
            rows.append(Row(what, scored, TARGET, note=note))
            control = timings.ratio(workload.name, phase, AGAIN, PLAIN)
            rows.append(Row(f"control: {what}", control, note="the engine without scores against itself"))
    return Section(
        "Score emission",
        "Time of the language engine with scores over the time of the same without. The control loads the engine "
        "without scores twice: what it differs from 1 is the noise of this measurement.",
        rows,
        [
            f"{effort.loads} loads of each engine in fresh processes, {effort.runs} rounds each in random order.",
            f"Largest difference of the logits: {agreement.max_difference:.1e}.",
        ],
    )
