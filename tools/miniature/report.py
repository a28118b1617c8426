"""Write docs/miniature.md: the paper's tables and figures in miniature, measured on built pairs.

The first engine directory fills all tables and figures; further ones, of pairs trained with other seeds, show the
spread of the main tables. Runs are kept beside each other and continued, so an interrupted report resumes.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.cli.command_line import CommandParser, add_running_arguments, positive, read_device, run_command
from engine.cli.draw_pruning import save
from engine.config import ExitConfig, ExitCriterion, GuidanceConfig, GuidanceSource, SamplingConfig, ScoreRows
from engine.errors import RequestError
from engine.evaluation.benchmark import TOTAL, mean
from engine.evaluation.cascade import Labelled, by_criterion
from engine.evaluation.figures import draw_cascades, draw_ratios, save_figure
from engine.runtime.pipeline import SglPipeline
from tools.draw_figure import draw_figure
from tools.miniature.benchmark import MINIATURE
from tools.miniature.study import ALONE, BOTH_ANSWER, SMALL_ANSWERS, Study, seconds_of

RETENTIONS = (0.64, 0.35, 0.09)
"""The paper's."""
FEWEST, USUAL = 0.09, 0.35
LAYERS = (0.1, 0.3, 0.5, 0.7, 1.0)
EXITS = (0.0, 0.2, 0.4, 0.6, 1.0)
TIMED = 96
"""Questions of the runs that times are taken from; they are runs of their own, so that they can be made again."""
COMMAND = "python -m tools.miniature.report --engine DIR"
Table = Sequence[Sequence[str]]


def markdown(table: Table) -> str:
    """The first row is the head; numbers stand right."""
    head, *rows = table
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def guided(source: GuidanceSource, retention: float) -> GuidanceConfig:
    return GuidanceConfig(source=source, average_retention=retention)


def possible(study: Study, guidance: GuidanceConfig) -> bool:
    """Whether the engine can run it: FASTV needs a layer before the prune layer, it and ORACLE large scores."""
    large = study.pipeline.manifest.models["large"]
    try:
        guidance.resolve(large.config.language.num_layers, large.prune_layers)
    except RequestError:
        return False
    return large.scores or not guidance.source.reads_large()


def source_scores(
    study: Study, sources: Sequence[GuidanceSource] = tuple(GuidanceSource), retentions: Sequence[float] = RETENTIONS
) -> dict[GuidanceSource, dict[float, float]]:
    """Of each source at each retention that it can run at."""
    return {
        source: {
            retention: study.score(f"{source}-{retention:.0%}", guided(source, retention))
            for retention in retentions
            if possible(study, guided(source, retention))
        }
        for source in sources
    }


def models_table(studies: Sequence[Study]) -> Table:
    """Both models alone, by kind of question."""
    rows: dict[str, list[dict[str, float]]] = {
        "small": [study.figures("small-alone", ALONE, SMALL_ANSWERS) for study in studies],
        "large": [study.figures("large-alone", ALONE) for study in studies],
    }
    kinds = list(rows["small"][0])
    return [
        ["model", *kinds],
        *(
            [name, *(spread([one[kind] for one in figures if kind in one]) for kind in kinds)]
            for name, figures in rows.items()
        ),
    ]


def sources_table(
    studies: Sequence[Study],
    sources: Sequence[GuidanceSource] = tuple(GuidanceSource),
    retentions: Sequence[float] = RETENTIONS,
) -> Table:
    """Score in percent of the unpruned large model; with several pairs the mean and the lowest and highest."""
    ratios: dict[GuidanceSource, dict[float, list[float]]] = {}
    for study in studies:
        whole = study.score("large-alone", ALONE)
        for source, scores in source_scores(study, sources, retentions).items():
            for retention, score in scores.items():
                ratios.setdefault(source, {}).setdefault(retention, []).append(100 * score / whole if whole else 0.0)
    rows = [
        [source, *(spread(ratios.get(source, {}).get(retention, [])) for retention in retentions)] for source in sources
    ]
    return [["guidance", *(f"{retention:.0%}: {where(studies[0], retention)}" for retention in retentions)], *rows]


def where(study: Study, retention: float) -> str:
    """The prune layer and the share kept from there on that make an average retention."""
    large = study.pipeline.manifest.models["large"]
    guidance = guided(GuidanceSource.SMALL, retention).resolve(large.config.language.num_layers, large.prune_layers)
    return f"K = {guidance.prune_layer}, r = {guidance.retention_ratio:.1%}"


def ablation(study: Study, options: Mapping[str, Mapping[str, object]]) -> Table:
    """Variants of the small model's guidance at the lowest retention."""
    whole = study.score("large-alone", ALONE)
    rows = []
    for name, changes in options.items():
        guidance = replace(guided(GuidanceSource.SMALL, FEWEST), **changes)  # type: ignore[arg-type]
        usual = guidance == guided(GuidanceSource.SMALL, FEWEST)
        score = study.score(f"small-{FEWEST:.0%}" + ("" if usual else f"-{name}"), guidance)
        rows.append([name, percent(score), percent(100 * score / whole if whole else 0.0)])
    return [["", "score", "% of unpruned"], *rows]


def exit_curves(study: Study) -> dict[ExitCriterion, Labelled]:
    """Every criterion over the run in which both models answer."""
    records = study.records(f"both-{USUAL:.0%}", guided(GuidanceSource.SMALL, USUAL), BOTH_ANSWER)
    return by_criterion(records, ExitConfig(), study.directory)


def exits_table(curves: Sequence[Mapping[ExitCriterion, Labelled]]) -> Table:
    """Area and AUC of every pair, and the first pair's cascade at a few shares of exits."""
    rows = []
    for name, first in curves[0].items():
        cascade = first.cascade()
        areas = [of_pair[name].cascade().area() for of_pair in curves]
        aucs = [auc for of_pair in curves if (auc := of_pair[name].auc()) is not None]
        scores = [percent(100 * float(cascade.grade[round(share * (len(cascade.grade) - 1))])) for share in EXITS]
        rows.append([name, spread(areas, 3), spread(aucs, 3), *scores])
    return [["criterion", "area", "AUC", *(f"{share:.0%} exit" for share in EXITS)], *rows]


def time_table(study: Study) -> Table:
    """Milliseconds a question of the runs above, made again for a few questions."""
    timed = replace(study, examples=study.examples[:TIMED], directory=study.directory / "timed")
    rows = [["large alone", f"{1000 * seconds_of(timed.records('large-alone', ALONE)):.1f}"]]
    for retention in RETENTIONS:
        guidance = guided(GuidanceSource.SMALL, retention)
        seconds = seconds_of(timed.records(f"{GuidanceSource.SMALL}-{retention:.0%}", guidance))
        rows.append([f"SGP, {retention:.0%}", f"{1000 * seconds:.1f}"])
    cascade = exit_curves(timed)[ExitCriterion.DECISION_SCORE].cascade()
    for share in EXITS[1:-1]:
        seconds = float(cascade.cost[round(share * (len(cascade.cost) - 1))])
        rows.append([f"SGP, {USUAL:.0%}, {share:.0%} exit", f"{1000 * seconds:.1f}"])
    return [["", "ms a question"], *rows]


def write_report(studies: Sequence[Study], out: Path) -> None:
    """The document, and its figures beside it. Raises EngineError."""
    study = studies[0]
    curves = [exit_curves(one) for one in studies]
    figures = [out.with_name(f"{out.stem}_{name}.png") for name in ("sources", "exits", "tokens")]
    whole = study.score("large-alone", ALONE)
    scores = {source.value: points for source, points in source_scores(study).items() if points}
    save_figure(draw_ratios(scores, whole or 1.0), figures[0])
    save_figure(draw_cascades(curves[0]), figures[1])
    example = study.examples[0]
    shown = [source for source in GuidanceSource if possible(study, guided(source, FEWEST))]
    sampling = SamplingConfig(max_new_tokens=study.benchmark.max_new_tokens)
    (picture,) = example.pictures()
    tokens = draw_figure(study.pipeline, picture, example.question, shown, RETENTIONS, sampling)
    save(tokens, figures[2])
    # of one picture, what is behind it is the whole prompt
    rows = {rows.value: {"score_rows": rows} for rows in ScoreRows if rows is not ScoreRows.BEHIND_LAST}
    layers = {f"first {share:.0%} of the layers": {"score_layers": share} for share in LAYERS}
    questions = f"{len(study.examples)} test questions of {study.benchmark.name}"
    several = len(studies) > 1
    pairs = f"{len(studies)} pairs trained with different seeds" if several else "one pair"
    few = min(len(one.examples) for one in studies)
    less = f", the further ones on {few} questions" if few < len(study.examples) else ""
    note = f"\nA range in brackets is over the pairs{less}; what has none is of the first pair." if several else ""
    out.write_text(
        f"""# The paper's tables in miniature

Written by `{COMMAND}`; do not edit. {questions} ({study.benchmark.metric}), {pairs}.
All sources of guidance run through the same pruned graph. A dash: the engine cannot run it (FastV has no layer to look
at before prune layer 0; FastV and the oracle need `--large-scores`).{note}

## Both models alone

Score in percent.

{markdown(models_table(studies))}

## Guidance sources by average retention (table 1, figure 3)

Score in percent of the unpruned large model. Its layers below K see every visual token, those from K
on the share r; ToMe merges before the first layer, to the same average.

{markdown(sources_table(studies))}

![Score over retention]({figures[0].name})

## Layers of the small model that count, at {FEWEST:.0%} (table 2)

{markdown(ablation(study, layers))}

## Rows that count, at {FEWEST:.0%} (table 3)

{markdown(ablation(study, rows))}

## Early exit, SGP at {USUAL:.0%} (table 4, figure 4)

Area under score over exits; AUC of "the small model is right"; score of the cascade when that share exits.

{markdown(exits_table(curves))}

![Early exit by criterion]({figures[1].name})

## Time (table 5)

{min(TIMED, len(study.examples))} questions in batches of {study.pipeline.manifest.max_batch}; the pictures are so small
that fixed costs weigh more than tokens.

{markdown(time_table(study))}

## What is kept (figure 5)

![Kept tokens by source and retention]({figures[2].name})
""",
        encoding="utf-8",
    )


def percent(value: float) -> str:
    return f"{value:.1f}"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and the range of more than one."""
    if not values:
        return "–"
    around = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="report", description=__doc__)
    add = parser.add_argument
    add("--engine", type=Path, nargs="+", required=True, metavar="ENGINE_DIR", help="built with --large-scores")
    add("--out", type=Path, default=Path("docs/miniature.md"), help="(default: %(default)s)")
    add("--runs", type=Path, default=Path("results/miniature"), metavar="DIR", help="(default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--spread-limit", type=positive, metavar="N", help="only the first N questions for the further pairs")
    add_running_arguments(parser)
    arguments = parser.parse_args(argv)

    def command() -> None:
        examples = MINIATURE.load(Path())[: arguments.limit]
        studies = [
            Study(
                # Each setting is timed with all of its own work.
                SglPipeline.load(
                    engine, arguments.threads, device=read_device(arguments), feature_cache=0, prefix_cache=0
                ),
                MINIATURE,
                examples[: arguments.spread_limit] if number else examples,
                arguments.runs / str(number),
            )
            for number, engine in enumerate(arguments.engine)
        ]
        write_report(studies, arguments.out)
        score = studies[0].score("large-alone", ALONE)
        print(f"{arguments.out}: {len(examples)} questions, unpruned large {TOTAL} {score:.1f} %")

    return run_command(command, "interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
