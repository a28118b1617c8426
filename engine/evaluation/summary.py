"""The figures of a run, as a table and as JSON."""

from collections.abc import Sequence
from typing import Any

from engine.evaluation.benchmark import Benchmark, mean
from engine.evaluation.record import Record
from engine.runtime.answer import AnsweredBy


def summarise(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """score and small_score: figure by name, None where there is none. The rest are means over the questions."""
    small_answered = all(record.small_text is not None for record in records)
    exits = [record.answered_by is AnsweredBy.SMALL for record in records]
    by_large = [record for record in records if record.answered_by is AnsweredBy.LARGE]
    graded = benchmark.grade is not None
    return {
        "benchmark": benchmark.name,
        "metric": benchmark.metric,
        "questions": len(records),
        "score": benchmark.summarise([record.mark() for record in records]) if graded else None,
        "small_score": benchmark.summarise([record.mark_of_small() for record in records])
        if graded and small_answered
        else None,
        "early_exit": mean(exits),
        "average_retention": mean([record.average_retention for record in by_large]) if by_large else None,
        "tiles_skipped": share(by_large, "tiles_skipped", "tiles"),
        "steps_saved": steps_saved(by_large),
        "acceptance": share(by_large, "accepted_tokens", "drafted_tokens"),
        "speculative_acceptance": share(by_large, "speculated_accepted_tokens", "speculated_tokens"),
        "visual_tokens": mean([record.visual_tokens for record in records]),
        "seconds": mean([sum(record.seconds.values()) for record in records]),
    }


def share(records: Sequence[Record], part: str, whole: str) -> float | None:
    """Of one count in another, over all records; None if there is nothing to have a share in."""
    total = sum(getattr(record, whole) for record in records)
    return sum(getattr(record, part) for record in records) / total if total else None


def steps_saved(by_large: Sequence[Record]) -> float | None:
    """Share of the large model's steps that drafts spared it; None if it had none to take."""
    steps = sum(record.generated_tokens - 1 for record in by_large)
    return sum(record.accepted_tokens for record in by_large) / steps if steps else None


def table(summary: dict[str, Any]) -> str:
    """One line for each figure, the small model's beside it, then how the answers came about."""
    retention = summary["average_retention"]
    lines = []
    if summary["score"] is not None:
        small = summary["small_score"] or {}
        width = max(map(len, summary["score"]))
        lines.append(f"{summary['benchmark']}, {summary['metric']}, {summary['questions']} questions")
        for name, figure in summary["score"].items():
            beside = f"   small alone {small[name]:7.2f}" if name in small else ""
            lines.append(f"  {name:{width}} {figure:7.2f}{beside}")
    lines.append(
        f"  early exit {summary['early_exit']:.1%}"
        + ("" if retention is None else f" · average retention {retention:.1%} where the large model answered")
        + (f" · {summary['tiles_skipped']:.1%} of its tiles not encoded" if summary["tiles_skipped"] else "")
        + ("" if summary["steps_saved"] is None else f" · {summary['steps_saved']:.1%} of its steps saved by drafts")
        + f" · {summary['seconds']:.3f} s a question"
    )
    if summary["acceptance"] is not None:
        behind = summary["speculative_acceptance"]
        lines.append(
            f"  {summary['acceptance']:.1%} of drafted tokens accepted"
            + ("" if behind is None else f" · {behind:.1%} of those behind what the large model had said")
        )
    return "\n".join(lines)
