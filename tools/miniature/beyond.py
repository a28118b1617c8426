"""Write docs/beyond.md: what the settings beyond the paper do to score and work, each alone and together.

Every setting is a run over the same questions in which both models answer, compared with plain SGP question by
question; the same runs say what every exit threshold would give. Runs are kept and continued, as the report's are.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.cli.command_line import CommandParser, add_running_arguments, positive, read_device, run_command
from engine.config import (
    ExitConfig,
    ExitCriterion,
    GuidanceConfig,
    GuidanceSource,
    SamplingConfig,
    Schedule,
    ScoreRows,
)
from engine.errors import RequestError
from engine.evaluation.benchmark import mean
from engine.evaluation.cascade import labelled
from engine.evaluation.front import Curve, Wish, below
from engine.evaluation.record import Record
from engine.evaluation.summary import summarise
from engine.runtime.answer import AnsweredBy
from engine.runtime.guidance import count_kept
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.scheduler import answered
from tools.miniature.benchmark import MINIATURE
from tools.miniature.questions import exam, picture
from tools.miniature.report import Table, markdown, percent, possible
from tools.miniature.scaled import WORDS, Scaled
from tools.miniature.scenes import Split
from tools.miniature.study import ALONE, BOTH_ANSWER, LARGE_ANSWERS, SMALL_ANSWERS, Study

COMMAND = "python -m tools.miniature.beyond --engine DIR"
RETENTIONS = (0.35, 0.09, 0.05)
CALIBRATION = 240
"""Validation questions that a share is fitted to."""
SHARE_LIMITS = {"retention_least": 0.015, "retention_most": 0.17}
TILES = 1 / 12
"""Fraction of the visual tokens whose tiles are encoded where a later layer prunes."""
WITHIN = (0.0, 0.01)
"""Of the large model's score: how far below it a cascade may be."""


@dataclass(frozen=True)
class Row:
    """One setting. Of those whose exit is BOTH_ANSWER every threshold is known."""

    name: str
    guidance: GuidanceConfig
    exit: ExitConfig = BOTH_ANSWER

    def file(self) -> str:
        """Name of its run, beside those of other retentions."""
        return self.name.split(" (")[0].replace(" ", "-").replace(",", "")


def importances(pipeline: SglPipeline, guidance: GuidanceConfig) -> list[np.ndarray]:
    """[V] of validation questions: what the small model's attention says."""
    sampling = SamplingConfig(max_new_tokens=MINIATURE.max_new_tokens)
    asked = (
        Question((picture(seed),), question.text, guidance, SMALL_ANSWERS, sampling)
        for seed, question in exam(Split.VALIDATION, CALIBRATION)
    )
    answers = [answered(outcome) for outcome in pipeline.answer_all(asked)]
    return [answer.importance for answer in answers if answer.importance is not None]


def share_for(maps: Sequence[np.ndarray], guidance: GuidanceConfig, retention: float) -> float:
    """The share of the largest importance that keeps so much on average: between what keeps all and what keeps one."""
    low, high = 1e-4, 1.0
    for _ in range(30):
        share = (low * high) ** 0.5
        tried = replace(guidance, retention_share=share)
        kept = mean([count_kept(one, tried)[0] / len(one) for one in maps])
        low, high = (share, high) if kept > retention else (low, share)
    return round(share, 4)


def with_share(pipeline: SglPipeline, name: str, base: GuidanceConfig, retention: float) -> Row:
    """Keeping so much on average."""
    limited = replace(base, average_retention=None, **SHARE_LIMITS)  # type: ignore[arg-type]
    share = share_for(importances(pipeline, limited), limited, retention)
    return Row(f"{name}, share ({share:.3f})", replace(limited, retention_share=share))


def rows_at(study: Study, retention: float) -> Iterator[Row]:
    """Every setting at an average retention, from the paper's on, and what the paper compares with."""
    pipeline, paper = study.pipeline, GuidanceConfig(average_retention=retention)
    flat = replace(paper, schedule=Schedule.FLAT)
    both = replace(flat, score_rows=ScoreRows.QUESTION, value_norm=True)
    yield Row("SGP", paper)
    yield Row("flat", flat)
    yield Row("SGP, tiles", replace(paper, tile_retention=TILES))
    yield Row("flat, both", both)
    if retention < SHARE_LIMITS["retention_most"]:
        yield Row("flat, question rows", replace(flat, score_rows=ScoreRows.QUESTION))
        yield Row("flat, value norm", replace(flat, value_norm=True))
        yield with_share(pipeline, "flat", flat, retention)
        yield with_share(pipeline, "flat, both", both, retention)
    for source in (GuidanceSource.ORACLE, GuidanceSource.RANDOM, GuidanceSource.TOME, GuidanceSource.FASTV):
        # FastV looks at a layer before the one that prunes.
        guidance = replace(paper if source is GuidanceSource.FASTV else flat, source=source)
        if possible(study, guidance):
            yield Row(str(source), guidance, LARGE_ANSWERS)


def difference(records: Sequence[Record], others: Sequence[Record]) -> str:
    """In points, with its standard error, both over the same questions."""
    points = 100 * np.array([one.grade - other.grade for one, other in zip(records, others, strict=True)])  # type: ignore[operator]
    return f"{points.mean():+.2f} ± {points.std(ddof=1) / max(1, len(points)) ** 0.5:.2f}"


def table(study: Study, rows: Sequence[Row], prefix: str, alone: Sequence[Record]) -> Table:
    """The large model answers every question."""
    whole = mean([record.grade for record in alone])  # type: ignore[misc]
    found: dict[str, Sequence[Record]] = {}
    lines = [["", "score", "% of unpruned", f"to {rows[0].name}", "kept", "tiles encoded", "steps saved"]]
    for row in rows:
        found[row.name] = study.records(f"{prefix}-{row.file()}", row.guidance, row.exit)
        records = found[row.name]
        summary = summarise(study.benchmark, records)
        large = [record for record in records if record.answered_by is AnsweredBy.LARGE]
        score = mean([record.grade for record in records])  # type: ignore[misc]
        lines.append(
            [
                row.name,
                f"{100 * score:.2f}",
                percent(100 * score / whole if whole else 0.0),
                "" if row is rows[0] else difference(records, found[rows[0].name]),
                f"{percent(100 * mean([record.num_kept / record.visual_tokens for record in large]))} %",
                f"{percent(100 * (1 - (summary['tiles_skipped'] or 0)))} %",
                f"{percent(100 * (summary['steps_saved'] or 0))} %",
            ]
        )
    return lines


def cascades(study: Study, rows: Mapping[str, Row], alone: Sequence[Record]) -> Table:
    """What early exits by confidence come to, at the thresholds that cost least and are near enough on these questions.

    rows: by the name of their run.
    """
    grades = np.array([record.grade for record in alone])
    lines = [["", *(f"{name} {within:.0%} below" for within in WITHIN for name in ("exits", "operations", "roofline"))]]
    exit = replace(BOTH_ANSWER, criterion=ExitCriterion.CONFIDENCE)
    for file, row in rows.items():
        records, scaled = study.records(file, row.guidance, row.exit), Scaled(row.guidance)
        line = [file.replace("-", " ")]
        for within in WITHIN:
            costs = []
            for cost_of in (scaled.by_operations(), scaled.by_roofline()):
                one = labelled(records, exit, study.directory / file, cost_of)
                cascade = one.cascade()
                curve = Curve(study.directory / file, row.guidance, exit, cascade, below(one, cascade, grades, 0.0))
                costs.append(curve)
            try:
                points = [Wish(within=within).choose([curve]) for curve in costs]
            except RequestError:
                line += ["not reached", "", ""]
                continue
            line += [f"{points[0].exit_ratio:.1%}", *(f"{point.cost:.1%}" for point in points)]
        lines.append(line)
    return lines


def write(study: Study, out: Path, retentions: Sequence[float]) -> None:
    """The document. Raises EngineError."""
    alone = study.records("large-alone", ALONE)
    rows = {retention: list(rows_at(study, retention)) for retention in retentions}
    parts: dict[str, Table] = {
        f"At {retention:.0%}, the large model answers": table(study, of, f"{retention}", alone)
        for retention, of in rows.items()
    }
    exits = {
        f"{retention}-{row.file()}": row for retention, of in rows.items() for row in of if row.exit is BOTH_ANSWER
    }
    parts["With early exits, by arithmetic"] = cascades(study, exits, alone)
    text = "\n\n".join(f"## {title}\n\n{markdown(lines)}" for title, lines in parts.items())
    out.write_text(
        f"""# Beyond the paper, in miniature

Written by `{COMMAND}`; do not edit. {len(study.examples)} test questions of {study.benchmark.name}, one pair, fp32.
Score in percent, in percent of the large model without pruning, and its difference to SGP in points, question by
question, ± its standard error. Kept: visual tokens after the prune point; tiles and steps are the large model's. "Both"
is question rows with value norm; a share is fitted to {CALIBRATION} validation questions; "tiles" encodes those of
{TILES:.1%} of the tokens, which is exact at prune layer 0 only. Drafts are on wherever the small model is asked: they
change no answer. FastV has the paper's schedule, the other baselines the flat one. [What each setting
is](algorithm.md#8-beyond-the-paper).

The last table is `sgl plan`'s arithmetic and no measurement: {WORDS}. Exits, tiles, tokens and saved steps are at the
rates of the miniature, exits by confidence at the threshold that is cheapest of those that are near enough to the large
model's score on these very questions. Operations and time are in what the large model alone takes.

{text}
""",
        encoding="utf-8",
    )


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="beyond", description=__doc__)
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="ENGINE_DIR", help="built with --large-scores for all baselines")
    add("--out", type=Path, default=Path("docs/beyond.md"), help="(default: %(default)s)")
    add("--runs", type=Path, default=Path("results/beyond"), metavar="DIR", help="(default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--retention", type=float, nargs="+", default=RETENTIONS, metavar="AVERAGE", help="(default: %(default)s)")
    add_running_arguments(parser)
    arguments = parser.parse_args(argv)

    def command() -> None:
        examples = MINIATURE.load(Path())[: arguments.limit]
        pipeline = SglPipeline.load(
            arguments.engine, arguments.threads, device=read_device(arguments), feature_cache=2**20
        )
        with pipeline:
            study = Study(pipeline, MINIATURE, examples, arguments.runs)
            write(study, arguments.out, arguments.retention)
        print(f"{arguments.out}: {len(examples)} questions, {arguments.out.stat().st_size} bytes")

    return run_command(command, "interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
