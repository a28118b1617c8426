"""Write docs/beyond.md: what the settings beyond the paper do to score and work, each alone and together.

Every row is a run over the same questions, compared with plain SGP question by question. Runs are kept and continued,
as the report's are.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.cli.command_line import CommandParser, add_running_arguments, positive, read_device, run_command
from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, Schedule, ScoreRows
from engine.evaluation.benchmark import mean
from engine.evaluation.record import Record
from engine.evaluation.summary import summarise
from engine.runtime.answer import AnsweredBy
from engine.runtime.guidance import count_kept
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.scheduler import answered
from tools.miniature.benchmark import MINIATURE
from tools.miniature.questions import exam, picture
from tools.miniature.report import Table, markdown, percent
from tools.miniature.scenes import Split
from tools.miniature.study import ALONE, LARGE_ANSWERS, SMALL_ANSWERS, Study

COMMAND = "python -m tools.miniature.beyond --engine DIR"
RETENTIONS = (0.35, 0.09, 0.05)
CALIBRATION = 240
"""Validation questions that a share is fitted to."""
SHARE_LIMITS = {"retention_least": 0.015, "retention_most": 0.17}


@dataclass(frozen=True)
class Row:
    """One setting."""

    name: str
    guidance: GuidanceConfig
    exit: ExitConfig = LARGE_ANSWERS


def importances(pipeline: SglPipeline, guidance: GuidanceConfig, exit: ExitConfig) -> list[np.ndarray]:
    """[V] of validation questions: what the small model's attention says, of those that `exit` leaves to the large."""
    sampling = SamplingConfig(max_new_tokens=MINIATURE.max_new_tokens)
    asked = (
        Question((picture(seed),), question.text, guidance, SMALL_ANSWERS, sampling)
        for seed, question in exam(Split.VALIDATION, CALIBRATION)
    )
    answers = [answered(outcome) for outcome in pipeline.answer_all(asked)]
    unsure = [
        answer
        for answer in answers
        if not exit.enabled or (answer.decision is not None and answer.decision.value < exit.exit_threshold)
    ]
    return [answer.importance for answer in unsure if answer.importance is not None]


def share_for(maps: Sequence[np.ndarray], guidance: GuidanceConfig, retention: float) -> float:
    """The share of the largest importance that keeps so much on average: between what keeps all and what keeps one."""
    low, high = 1e-4, 1.0
    for _ in range(30):
        share = (low * high) ** 0.5
        tried = replace(guidance, retention_share=share)
        kept = mean([count_kept(one, tried)[0] / len(one) for one in maps])
        low, high = (share, high) if kept > retention else (low, share)
    return round(share, 4)


def with_share(pipeline: SglPipeline, name: str, base: GuidanceConfig, retention: float, exit: ExitConfig) -> Row:
    """Keeping so much on average of the questions that reach the large model."""
    limited = replace(base, average_retention=None, **SHARE_LIMITS)  # type: ignore[arg-type]
    share = share_for(importances(pipeline, limited, exit), limited, retention)
    return Row(f"{name}, share {share}", replace(limited, retention_share=share), exit)


def rows_at(pipeline: SglPipeline, retention: float) -> Iterator[Row]:
    """Every setting at an average retention, from the paper's on."""
    paper = GuidanceConfig(average_retention=retention)
    flat = replace(paper, schedule=Schedule.FLAT)
    ranked = replace(flat, score_rows=ScoreRows.QUESTION, value_norm=True)
    yield Row("SGP", paper)
    yield Row("flat", flat)
    if retention < SHARE_LIMITS["retention_most"]:
        yield Row("flat, question rows", replace(flat, score_rows=ScoreRows.QUESTION))
        yield Row("flat, value norm", replace(flat, value_norm=True))
        yield with_share(pipeline, "flat", flat, retention, LARGE_ANSWERS)
        yield with_share(pipeline, "flat, both", ranked, retention, LARGE_ANSWERS)
    yield Row("flat, both", ranked)


def cascades(pipeline: SglPipeline) -> Iterator[Row]:
    """With early exits, as a build has them by default."""
    exit = ExitConfig()
    paper = {retention: GuidanceConfig(average_retention=retention) for retention in (0.35, 0.09)}
    flat = replace(paper[0.09], schedule=Schedule.FLAT)
    yield Row("large alone", ALONE)
    yield Row("SGL, 35 %", paper[0.35], exit)
    yield Row("SGL, 9 %", paper[0.09], exit)
    yield Row("flat, 9 %", flat, exit)
    yield with_share(pipeline, "flat", flat, 0.09, exit)
    yield Row("flat, both, 9 %", replace(flat, score_rows=ScoreRows.QUESTION, value_norm=True), exit)


def difference(records: Sequence[Record], others: Sequence[Record]) -> str:
    """In points, with its standard error, both over the same questions."""
    points = 100 * np.array([one.grade - other.grade for one, other in zip(records, others, strict=True)])  # type: ignore[operator]
    return f"{points.mean():+.2f} ± {points.std(ddof=1) / len(points) ** 0.5:.2f}"


def table(study: Study, rows: Sequence[Row], prefix: str) -> Table:
    found: dict[str, Sequence[Record]] = {}
    first, second = rows[0].name, rows[1].name
    head = ["", "score", f"to {first}", f"to {second}", "kept", "tiles encoded", "steps saved", "exits"]
    lines = [head]
    for row in rows:
        name = row.name.replace(" ", "-").replace(",", "").replace("%", "")
        found[row.name] = study.records(f"{prefix}-{name}", row.guidance, row.exit)
        records = found[row.name]
        summary = summarise(study.benchmark, records)
        large = [record for record in records if record.answered_by is AnsweredBy.LARGE]
        kept = mean([record.num_kept / record.visual_tokens for record in large])
        score = 100 * mean([record.grade for record in records])  # type: ignore[misc]
        saved = summary["steps_saved"] or 0
        lines.append(
            [
                row.name,
                f"{score:.2f}",
                "" if row.name == first else difference(records, found[first]),
                "" if row.name in (first, second) else difference(records, found[second]),
                f"{100 * kept:.1f} %",
                f"{percent(100 * (1 - (summary['tiles_skipped'] or 0)))} %",
                f"{percent(100 * saved)} %",
                f"{percent(100 * summary['early_exit'])} %",
            ]
        )
    return lines


def write(study: Study, out: Path, retentions: Sequence[float], exits: bool) -> None:
    """The document. Raises EngineError."""
    pipeline = study.pipeline
    parts: Mapping[str, Table] = {
        f"At {retention:.0%}, the large model answers": table(study, list(rows_at(pipeline, retention)), f"{retention}")
        for retention in retentions
    }
    if exits:
        parts = {**parts, "With early exits": table(study, list(cascades(pipeline)), "exits")}
    text = "\n\n".join(f"## {title}\n\n{markdown(lines)}" for title, lines in parts.items())
    out.write_text(
        f"""# Beyond the paper, in miniature

Written by `{COMMAND}`; do not edit. {len(study.examples)} test questions of {study.benchmark.name}, one pair, fp32.
Score in percent; differences to the first two rows in points, question by question, ± their standard errors. Kept:
visual tokens after the prune point, of the questions that the large model answers; of the same, tiles and steps. "Both"
is question rows with value norm. A share is fitted to {CALIBRATION} validation questions, with exits to those of them
that do not exit. Drafts are on in every row: they change no answer. [What each setting
is](algorithm.md#8-beyond-the-paper).

{text}
""",
        encoding="utf-8",
    )


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="beyond", description=__doc__)
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="ENGINE_DIR")
    add("--out", type=Path, default=Path("docs/beyond.md"), help="(default: %(default)s)")
    add("--runs", type=Path, default=Path("results/beyond"), metavar="DIR", help="(default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--retention", type=float, nargs="+", default=RETENTIONS, metavar="AVERAGE", help="(default: %(default)s)")
    add("--without-exits", action="store_true", help="leave out the runs in which the small model may answer")
    add_running_arguments(parser)
    arguments = parser.parse_args(argv)

    def command() -> None:
        examples = MINIATURE.load(Path())[: arguments.limit]
        pipeline = SglPipeline.load(
            arguments.engine, arguments.threads, device=read_device(arguments), feature_cache=2**20
        )
        with pipeline:
            study = Study(pipeline, MINIATURE, examples, arguments.runs)
            write(study, arguments.out, arguments.retention, not arguments.without_exits)
        print(f"{arguments.out}: {len(examples)} questions, {arguments.out.stat().st_size} bytes")

    return run_command(command, "interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
