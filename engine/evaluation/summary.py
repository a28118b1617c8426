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
        "visual_tokens": mean([record.visual_tokens for record in records]),
        "seconds": mean([sum(record.seconds.values()) for record in records]),
    }


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
        + f" · {summary['seconds']:.3f} s a question"
    )
    return "\n".join(lines)
