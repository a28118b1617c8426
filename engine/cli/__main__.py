"""The `sgl` command: build an engine directory, ask it, look inside it, serve it."""

import sys

import engine
from engine.cli.command_line import INTERRUPTED, CommandParser


def main(argv: list[str] | None = None) -> int:
    try:
        return run(argv)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def run(argv: list[str] | None) -> int:
    # Imported under main's guard: much of a short command's time is spent here.
    from engine.cli import ask, build, calibrate, chat, drain, evaluate, export, health, info, plan, watch

    parser = CommandParser(prog="sgl", description=__doc__)
    parser.add_argument("--version", action="version", version=f"sgl {engine.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module, summary in (
        ("plan", plan, "say what a pair needs on each GPU, and what fits"),
        ("build", build, "build the engine directory of a checkpoint pair"),
        ("ask", ask, "ask a question about pictures"),
        ("chat", chat, "ask one question after the other"),
        ("info", info, "say what an engine directory holds"),
        ("evaluate", evaluate, "run a benchmark"),
        ("calibrate", calibrate, "choose the exit threshold from a labelled run"),
        ("export", export, "write a model repository for Triton Inference Server"),
        ("health", health, "ask a running server a question"),
        ("drain", drain, "let a running server answer its last questions before it is stopped"),
        ("watch", watch, "run a server, and start it again when it does not answer"),
    ):
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
