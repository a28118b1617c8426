"""Figure 5 from the command line: a panel for each source and retention, with as much darkened as is dropped."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.cli.drawing import GAP
from tools.draw_figure import HEAD, WIDTH, main


def test_a_panel_for_each_source_and_retention(
    engine_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = tmp_path / "green.png", tmp_path / "figure.png"
    Image.new("RGB", (330, 220), (10, 200, 30)).save(picture)
    arguments = [str(engine_directory), "--image", str(picture), "--question", "What?", "--max-new-tokens", "2"]
    options = ["--guidance", "small", "tome", "random", "--retention", "0.9", "0.1", "--out", str(out)]
    assert main([*arguments, *options]) == 0
    assert "3 x 2 panels" in capsys.readouterr().out
    with Image.open(out) as figure:
        pixels = np.asarray(figure.convert("RGB"))
    assert pixels.shape[1] == GAP + 2 * (WIDTH + GAP)
    step = (len(pixels) - HEAD) // 3
    for row in range(3):
        much, little = (
            (pixels[HEAD + row * step :][: step - GAP, left : left + WIDTH] == (10, 200, 30)).all(axis=-1).mean()
            for left in (GAP, 2 * GAP + WIDTH)
        )
        assert little < much / 2
    assert main([*arguments, "--guidance", "oracle", "--out", str(out)]) == 2
    assert "rebuild with --large-scores" in capsys.readouterr().err
