"""Plan every published size and write docs/sizing.md."""

import sys
from pathlib import Path

from tools.build_progress import build_progress
from tools.command_line import CommandParser, run_command
from tools.planning.markdown import plan_markdown


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.planning", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/sizing.md"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        with build_progress(quiet=False) as on_progress:
            text = plan_markdown(on_progress)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"{arguments.out}: {len(text.splitlines())} lines")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
