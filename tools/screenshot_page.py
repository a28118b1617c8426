"""Take a picture of the page of `sgl serve`, after a question about a drawn scene and its comparison."""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from engine.cli.command_line import CommandParser, run_command
from engine.errors import RequestError
from tools.miniature.questions import Kind, render
from tools.page_browser import PATIENCE, browser, serving

SCENE = (0, Kind.NUMBER)
"""Test scene, and what is asked about it."""
WIDTH, HEIGHT = 1200, 800
COLOURS = 256
RETENTION = "0.1"


def take(engine_directory: Path, out: Path) -> None:
    """Raises EngineError."""
    with browser() as opened, serving(engine_directory, "--threads", "1", "--model-name", "miniature") as address:
        taken = screenshot(opened, address)
    try:
        taken.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    except (OSError, ValueError) as error:
        raise RequestError(f"{out} cannot be written ({error}); choose another file, ending in .png") from None


def screenshot(opened: Any, address: str) -> Image.Image:
    """Of the whole page, used as somebody would. opened: a browser."""
    scene, asked = render(*SCENE)
    file = io.BytesIO()
    scene.save(file, "PNG")
    with opened.new_page(viewport={"width": WIDTH, "height": HEIGHT}) as page:
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        chosen = {"name": "scene.png", "mimeType": "image/png", "buffer": file.getvalue()}
        page.get_by_label("Choose pictures").set_input_files(chosen)
        page.get_by_label("Retention").fill(RETENTION)
        page.get_by_role("textbox", name="Question").fill(asked.text)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("#guided table").wait_for()
        page.get_by_role("button", name="Compare").click()
        page.locator("#saved h3").wait_for()
        page.get_by_role("textbox", name="Question").blur()
        return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="screenshot_page", description=__doc__)
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR", help="of the miniature pair in models/miniature")
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        take(arguments.engine, arguments.out)
        print(f"the page is drawn in {arguments.out} ({arguments.out.stat().st_size / 1e3:.0f} kB)")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
