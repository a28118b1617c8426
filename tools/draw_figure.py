"""Figure 5: one picture and question, a panel for each guidance source (rows) and average retention (columns)."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.cli.command_line import (
    CommandParser,
    add_running_arguments,
    names,
    positive,
    printable,
    read_device,
    run_command,
)
from engine.cli.draw_pruning import covers, save
from engine.cli.drawing import FAINT, GAP, INK, PAPER, darken, fit
from engine.config import ExitConfig, GuidanceSource, SamplingConfig
from engine.runtime.answer import Answer
from engine.runtime.images import ImageSource, open_image
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question

WIDTH, HEAD, CAPTION = 240, 44, 40
RETENTIONS = (0.64, 0.35, 0.09)
"""The paper's."""
LONGEST = 34
"""Characters of an answer under its panel."""


def draw_figure(
    pipeline: SglPipeline,
    source: ImageSource,
    question: str,
    sources: Sequence[GuidanceSource],
    retentions: Sequence[float],
    sampling: SamplingConfig | None = None,
) -> Image.Image:
    """Raises EngineError. Of a picture with a thumbnail, the tokens of its tiles are shown."""
    picture = open_image(source)
    default = pipeline.manifest.guidance
    asked = [
        Question(
            (picture,),
            question,
            replace(default, enabled=True, source=guidance, average_retention=retention),
            ExitConfig(enabled=False),
            sampling,
        )
        for guidance in sources
        for retention in retentions
    ]
    answers = pipeline.answer_batch(asked)
    panels = [_panel(picture, answer) for answer in answers]
    height = HEAD + len(sources) * (panels[0].height + GAP)
    page = Image.new("RGB", (GAP + len(retentions) * (WIDTH + GAP), height), PAPER)
    ImageDraw.Draw(page).text((GAP, 14), question, INK, ImageFont.load_default(17))
    for index, panel in enumerate(panels):
        row, column = divmod(index, len(retentions))
        page.paste(panel, (GAP + column * (WIDTH + GAP), HEAD + row * (panel.height + GAP)))
    return page


def _panel(picture: Image.Image, answer: Answer) -> Image.Image:
    """Dropped tokens darkened; who ranked them, how many are left and what the answer is below."""
    tokens = np.arange(answer.visual_tokens)
    kept = np.isin(tokens, tokens if answer.kept is None else answer.kept)
    tiles = covers(answer.boxes) == 0
    drawn = darken(fit(picture.convert("RGB"), WIDTH), answer.boxes[tiles], kept[tiles])
    panel = Image.new("RGB", (WIDTH, drawn.height + CAPTION), PAPER)
    panel.paste(drawn)
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    source = "everything kept" if answer.guidance is None else f"{answer.guidance.source}"
    caption = f"{source} · {answer.average_retention():.0%} · {answer.num_kept()} of {answer.visual_tokens} tokens"
    text = printable(answer.text).replace("\n", " ")
    pen.text((0, drawn.height + 3), caption, INK, font)
    pen.text((0, drawn.height + 19), text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…", FAINT, font)
    return panel


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="draw_figure", description=__doc__)
    add = parser.add_argument
    add("engine", type=Path, metavar="ENGINE_DIR")
    add("--image", type=Path, required=True, metavar="FILE")
    add("--question", required=True)
    add("--guidance", nargs="+", choices=names(GuidanceSource), default=[GuidanceSource.SMALL], help="(default: small)")
    add("--retention", nargs="+", type=float, default=RETENTIONS, help="averages (default: the paper's)")
    add("--max-new-tokens", type=positive, default=SamplingConfig.max_new_tokens, help="(default: %(default)s)")
    add("--out", type=Path, required=True, metavar="OUT.png")
    add_running_arguments(parser)
    arguments = parser.parse_args(argv)

    def command() -> None:
        pipeline = SglPipeline.load(arguments.engine, arguments.threads, preload=False, device=read_device(arguments))
        sources = [GuidanceSource(source) for source in arguments.guidance]
        sampling = SamplingConfig(max_new_tokens=arguments.max_new_tokens)
        figure = draw_figure(pipeline, arguments.image, arguments.question, sources, arguments.retention, sampling)
        save(figure, arguments.out)
        print(f"{arguments.out}: {len(sources)} x {len(arguments.retention)} panels, {figure.width} x {figure.height}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
