"""The `sgl` command: plan, build, ask, look inside, measure and serve an engine directory."""

import sys
from collections.abc import Collection
from importlib import import_module

import engine
from engine.cli.command_line import INTERRUPTED, CommandParser

COMMANDS = {
    "plan": "say what a pair needs on each GPU, and what fits",
    "build": "build the engine directory of a checkpoint pair",
    "ask": "ask a question about pictures",
    "chat": "ask one question after the other",
    "batch": "answer a file of questions, on one machine or many",
    "info": "say what an engine directory holds",
    "evaluate": "run a benchmark",
    "calibrate": "choose the exit threshold from a labelled run",
    "serve": "serve an engine directory to OpenAI's clients, with a page",
    "export": "write a model repository for Triton Inference Server",
    "health": "ask a running server a question",
    "drain": "let a running server answer its last questions before it is stopped",
    "watch": "run a server, and start it again when it does not answer",
}
"""Each is the module of `engine.cli` of that name, with `add_arguments` and `run`."""


def main(argv: list[str] | None = None) -> int:
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def run(argv: list[str]) -> int:
    arguments = make_parser(argv[:1]).parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def make_parser(commands: Collection[str] = COMMANDS.keys()) -> CommandParser:
    """commands: whose modules are imported, much of a short command's time; of the others only the summary is known."""
    parser = CommandParser(prog="sgl", description=__doc__)
    parser.add_argument("--version", action="version", version=f"sgl {engine.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary)
        if name in commands:
            module = import_module(f"engine.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
