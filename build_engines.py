"""`sgl build`, from a checkout: `build_engines.py --small DIR --large DIR --out DIR`."""

import sys

from engine.cli import build
from engine.cli.command_line import CommandParser


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="build_engines.py", description=__doc__)
    build.add_arguments(parser)
    return build.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
