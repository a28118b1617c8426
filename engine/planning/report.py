"""A plan put together: what was asked, memory by rank, what fits, communication, prediction; in words and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from engine.build_flags import BuildFlag
from engine.planning.chip import Chip
from engine.planning.fit import Fit, fit
from engine.planning.pair_plan import PairPlan, RankMemory
from engine.planning.roofline import Latency, latency, sent_bytes
from engine.planning.workload import Workload
from engine.units import size_text


@dataclass(frozen=True)
class Communication:
    """all_reduces: of one call. prompt_bytes, token_bytes: what a rank sends for the prompt, and for a token after."""

    all_reduces: int
    prompt_bytes: float
    token_bytes: float


@dataclass(frozen=True)
class Prediction:
    """chip: with the figures that were assumed. Latencies of one question. guided: of the large model, pruned."""

    chip: Chip
    small: Latency
    guided: Latency
    alone: Latency


@dataclass(frozen=True)
class Report:
    """usable: bytes of each rank. ranks: rank 0, and what is the same for every other."""

    plan: PairPlan
    workload: Workload
    usable: int
    ranks: tuple[RankMemory, ...]
    fit: Fit
    communication: Communication
    prediction: Prediction


def make_report(plan: PairPlan, workload: Workload, chip: Chip) -> Report:
    """Raises EngineError when not one question of the workload fits."""
    world_size = plan.config.world_size
    prefill, decode = plan.large.prefill(workload), plan.large.decode(workload)
    return Report(
        plan,
        workload,
        chip.usable(),
        tuple(plan.memory(workload, rank) for rank in range(min(world_size, 2))),
        fit(plan, workload, chip.usable()),
        Communication(len(decode.reduced), sent_bytes(prefill, world_size), sent_bytes(decode, world_size)),
        Prediction(
            chip,
            latency(plan.small, workload, chip),
            latency(plan.large, workload, chip),
            latency(plan.large.unpruned(), workload, chip),
        ),
    )


def to_json(report: Report) -> dict[str, Any]:
    """Keys as the README documents them."""
    plan, workload, prediction = report.plan, report.workload, report.prediction
    config, guidance = plan.config, plan.guidance
    return {
        "small": plan.small.config.name,
        "large": plan.large.config.name,
        "target": config.target,
        "precision": config.precision,
        "world_size": config.world_size,
        "workload": asdict(workload) | {"visual_tokens": workload.visual_tokens(plan.large.config)},
        "prune_layer": guidance.prune_layer if guidance is not None else None,
        "retention_ratio": guidance.retention_ratio if guidance is not None else None,
        "usable_bytes": report.usable,
        "ranks": [
            asdict(memory) | {"total": memory.total(), "free": report.usable - memory.total()}
            for memory in report.ranks
        ],
        "fit": asdict(report.fit),
        "communication": asdict(report.communication),
        "prediction": {
            "chip": asdict(prediction.chip),
            "small": asdict(prediction.small),
            "large": asdict(prediction.guided),
            "large_unpruned": asdict(prediction.alone),
        },
    }


def to_tables(report: Report) -> RenderableType:
    """For a terminal."""
    return Group(_headline(report), _memory_table(report), _prose(report), _prediction_table(report))


def _headline(report: Report) -> str:
    plan, workload = report.plan, report.workload
    config, large = plan.config, plan.large.config
    ranks = f"{config.world_size} ranks" if config.world_size > 1 else "one rank"
    return (
        f"{plan.small.config.name} guides {large.name} · {config.target} {config.precision} · {ranks}\n"
        f"a question: {workload.visual_tokens(large):,} visual tokens ({workload.media(large.name)}), "
        f"{workload.text_tokens:,} of text, {workload.new_tokens:,} of answer; {_kept(report)}\n"
    )


def _kept(report: Report) -> str:
    guidance = report.plan.guidance
    if guidance is None:
        return "all visual tokens kept"
    layers = report.plan.large.config.language.num_layers
    return (
        f"{guidance.retention_ratio:.0%} of the visual ones kept from layer {guidance.prune_layer} of {layers} on "
        f"(on average {guidance.average(layers):.0%})"
    )


def _memory_table(report: Report) -> Table:
    plan = report.plan
    table = Table("memory", "rank 0", box=SIMPLE_HEAD)
    if len(report.ranks) > 1:
        last = plan.config.world_size - 1
        table.add_column("rank 1" if last == 1 else f"each of 1 to {last}")
    layers = plan.large.config.language.num_layers
    point = layers if plan.guidance is None else plan.guidance.prune_layer or 0
    for name, part in (
        (f"{plan.large.config.name}: language weights", lambda rank: rank.large.language),
        (f"{plan.large.config.name}: vision weights", lambda rank: rank.large.vision),
        (f"  KV cache, layers below {point}", lambda rank: rank.large.kv_full),
        (f"  KV cache, layers from {point} on", lambda rank: rank.large.kv_pruned),
        ("  activations", lambda rank: rank.large.activations),
        (f"{plan.small.config.name}: weights", lambda rank: rank.small and rank.small.weights()),
        ("  KV cache and activations", lambda rank: rank.small and rank.small.working()),
        ("visual features kept for both, at most", lambda rank: rank.features),
        ("together, as the models take turns", RankMemory.total),
        ("left", lambda rank: report.usable - rank.total()),
    ):
        sizes = [part(rank) for rank in report.ranks]
        table.add_row(name, *("–" if size is None else size_text(size) for size in sizes))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _prose(report: Report) -> str:
    fit, sent = report.fit, report.communication
    end = ", the most that both models were published for" if fit.context_of_models else ""
    lines = [f"fits: {fit.batch:,} such questions at once, or one of {fit.context:,} tokens{end}"]
    lines += [f"engines of exactly this size: {options}" for options in _build_options(report)]
    if report.plan.config.world_size > 1:
        lines.append(
            f"communication: {sent.all_reduces} all-reduces a call; each rank sends "
            f"{size_text(round(sent.prompt_bytes))} for the prompt, {size_text(round(sent.token_bytes))} for a token"
        )
    return "\n".join(lines)


def _build_options(report: Report) -> Iterator[str]:
    """Of a build whose KV buffers are no longer than planned, where that is settled by the build."""
    plan, workload = report.plan, report.workload
    if not plan.config.target.plans_memory():
        return
    context, guidance = workload.context(plan.large.config), plan.guidance
    kept = ""
    if guidance is not None and guidance.prune_layer:
        rows = workload.prompt_rows(plan.large.config, (guidance.prune_layer,), guidance)
        longest = rows[-1] + workload.new_tokens
        kept = f" {BuildFlag.PRUNE_LAYERS} {guidance.prune_layer} {BuildFlag.MAX_KEPT_TOKENS} {longest}"
    yield f"{BuildFlag.MAX_TOKENS} {context} {BuildFlag.MAX_BATCH} {workload.batch}{kept}"


def _prediction_table(report: Report) -> Table:
    prediction = report.prediction
    chip = prediction.chip
    new_tokens = report.workload.new_tokens
    table = Table(
        "PREDICTED latency, not measured", "first token", "each after", f"{new_tokens} tokens", box=SIMPLE_HEAD
    )
    for name, times in (
        (f"{report.plan.small.config.name}", prediction.small),
        (f"{report.plan.large.config.name}, pruned", prediction.guided),
        (f"{report.plan.large.config.name}, nothing pruned", prediction.alone),
    ):
        seconds = (times.first_token, times.next_token, times.answer(new_tokens))
        table.add_row(name, *(f"{1000 * value:,.1f} ms" for value in seconds))
    for column in table.columns[1:]:
        column.justify = "right"
    table.caption = assumptions(chip)
    return table


def assumptions(chip: Chip) -> str:
    """What a prediction stands on."""
    return (
        f"a roofline of {chip.name}: {chip.bandwidth / 1e12:g} TB/s, {chip.matrix_rate / 1e12:g} TFLOP/s, "
        f"{chip.interconnect / 1e9:g} GB/s each way between GPUs, {1e6 * chip.reduce_latency:g} us for an all-reduce; "
        "real kernels are slower"
    )
