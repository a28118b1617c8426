"""Our fp32 language engine next to other engines on the same weights."""

from functools import partial
from pathlib import Path

from tools.benchmark.bench import Bench
from tools.benchmark.engines import build_language
from tools.benchmark.interleave import (
    DECODE,
    PREFILL,
    Agreement,
    Effort,
    Logits,
    Workload,
    collect_logits,
    compare_logits,
    run_interleaved,
)
from tools.benchmark.peers import PEERS, LoadPeer, Peer, write_transformers_checkpoint
from tools.benchmark.report import Row, Section, not_measured
from tools.benchmark.runners import LanguageEngine
from tools.benchmark.sizes import make_answer, make_text_prompt
from tools.benchmark.worker import Worker, WorkerError

EFFORT = Effort(loads=2, runs=5)
TOLERANCE = 0.02
"""Of logits, whose standard deviation is about 1: far above rounding, far below another computation."""
OURS = "sgl-engine"


def measure_peers(bench: Bench) -> Section:
    model, size = bench.model("small", bench.size.small), bench.size
    engine = build_language(model, bench.work / "plain", bench.threads, bench.progress("engine without scores"))
    prompt = make_text_prompt(model.config, size.short)
    workload = Workload(f"{len(prompt.ids):,}", prompt, make_answer(model.config, size.decode_tokens))
    with Worker(engine) as worker:
        expected = collect_logits(worker, [workload])
    rows, remarks = [], []
    for peer in PEERS:
        try:
            measured, remark = _measure_peer(bench, peer, model.directory, engine, workload, expected)
        except WorkerError as error:
            reason = str(error).splitlines()[0] if str(error) else "its process failed"
            measured = [not_measured(what, reason, peer.target) for what in _titles(peer, workload)]
            remark = f"{peer.name}: {reason}."
        rows += measured
        remarks.append(remark)
    return Section(
        "Next to other engines, fp32",
        "Time of our language engine over the time of the other on the same float32 weights, words only, each in its "
        f"own process with {bench.threads} threads; the other waits asleep.",
        rows,
        remarks,
    )


def _titles(peer: Peer, workload: Workload) -> tuple[str, str]:
    tokens = len(workload.answer)
    return (
        f"{peer.name}: prefill of {workload.name} tokens",
        f"{peer.name}: decode of {tokens} tokens after {workload.name}",
    )


def _measure_peer(
    bench: Bench, peer: Peer, checkpoint: Path, engine: LanguageEngine, workload: Workload, expected: Logits
) -> tuple[list[Row], str]:
    """The peer's rows and how it was run. Raises WorkerError when there is nothing to measure."""
    if reason := peer.missing():
        raise WorkerError(reason)
    subject = _prepare(bench, peer, checkpoint, len(workload.prompt.ids) + len(workload.answer) + 1)
    with Worker(subject) as worker:
        agreement = compare_logits(collect_logits(worker, [workload]), expected)
    if not agreement.same_top or agreement.max_difference > TOLERANCE:
        raise WorkerError(f"it computes other logits than ours: {_describe(agreement)}")
    timings = run_interleaved(
        {OURS: engine, peer.name: subject}, [workload], bench.effort(EFFORT), bench.progress(f"with {peer.name}")
    )
    rows = []
    for phase, what in zip((PREFILL, DECODE), _titles(peer, workload), strict=True):
        ours, theirs = (timings.spread(workload.name, phase, name).median for name in (OURS, peer.name))
        note = f"{1000 * ours:,.1f} ms ours, {1000 * theirs:,.1f} ms theirs"
        rows.append(Row(what, timings.ratio(workload.name, phase, OURS, peer.name), peer.target, note=note))
    remark = (
        f"{peer.name}: {peer.setting}; {_describe(agreement)}; a waiting process used "
        f"{100 * timings.idle_share():.0f} % of a core."
    )
    return rows, remark


def _prepare(bench: Bench, peer: Peer, checkpoint: Path, max_tokens: int) -> LoadPeer:
    """Write what the peer loads; in processes of their own, for what it imports must not stay here."""
    report = bench.progress(f"model for {peer.name}")
    report(0.0)
    published, out = bench.work / "transformers", bench.work / f"{peer.name}.model"
    if not published.exists():
        with Worker(partial(write_transformers_checkpoint, checkpoint, published)):
            report(0.5)
    with Worker(partial(peer.export, published, out)):
        report(1.0)
    return LoadPeer(peer, out, bench.threads, max_tokens)


def _describe(agreement: Agreement) -> str:
    top = "same" if agreement.same_top else "other"
    return f"logits differ by at most {agreement.max_difference:.1e}, {top} most probable token"
