"""Write docs/across.md: the small miniature in Qwen2-VL's layout guides the large one in InternVL2's.

Runs are kept and continued, as the report's are.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.cli.command_line import CommandParser, add_running_arguments, positive, read_device, run_command
from engine.config import GuidanceSource
from engine.evaluation.benchmark import TOTAL
from engine.runtime.pipeline import SglPipeline
from tools.miniature.benchmark import MINIATURE
from tools.miniature.report import markdown, models_table, sources_table
from tools.miniature.study import ALONE, Study

RETENTIONS = (0.35, 0.09)
SOURCES = (GuidanceSource.SMALL, GuidanceSource.FASTV, GuidanceSource.RANDOM)
COMMAND = "python -m tools.miniature.across --engine DIR"


def write(studies: Sequence[Study], out: Path) -> None:
    """The document. Raises EngineError."""
    study = studies[0]
    small, large = (study.pipeline.manifest.models[name].config for name in ("small", "large"))
    out.write_text(
        f"""# Guidance across families, in miniature

Written by `{COMMAND}`; do not edit. {len(study.examples)} test questions of {study.benchmark.name}
({study.benchmark.metric}), one pair, fp32: a trained small model of the family `{small.family}` guides a trained large
one of `{large.family}`. They have different tokenizers, prompts and orders of visual tokens; importance goes from grid
to grid by where each token lies in the picture, and positions of what is kept have gaps.

## Both models alone

Score in percent.

{markdown(models_table(studies))}

## Guidance sources by average retention

Score in percent of the unpruned large model. Its layers below K see every visual token, those from K on the share r.

{markdown(sources_table(studies, SOURCES, RETENTIONS))}
""",
        encoding="utf-8",
    )


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="across", description=__doc__)
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="ENGINE_DIR", help="built with --large-scores")
    add("--out", type=Path, default=Path("docs/across.md"), help="(default: %(default)s)")
    add("--runs", type=Path, default=Path("results/across"), metavar="DIR", help="(default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add_running_arguments(parser)
    arguments = parser.parse_args(argv)

    def command() -> None:
        examples = MINIATURE.load(Path())[: arguments.limit]
        pipeline = SglPipeline.load(arguments.engine, arguments.threads, device=read_device(arguments))
        with pipeline:
            study = Study(pipeline, MINIATURE, examples, arguments.runs)
            write([study], arguments.out)
            score = study.score("large-alone", ALONE)
        print(f"{arguments.out}: {len(examples)} questions, unpruned large {TOTAL} {score:.1f} %")

    return run_command(command, "interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
