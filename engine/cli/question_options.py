"""The options of a question on the command line, from their table."""

import argparse
from typing import Any

from engine.cli.command_line import flag
from engine.config import ExitConfig, GuidanceConfig, SamplingConfig
from engine.options import BY_NAME, GROUPS, OPTIONS, Config, Given, Option

Group = argparse.ArgumentParser | argparse._ArgumentGroup


def add_group(parser: argparse.ArgumentParser, config: type[Config]) -> argparse._ArgumentGroup:
    """All options that one configuration reads."""
    group = parser.add_argument_group(GROUPS[config])
    for option in OPTIONS:
        if option.config is config:
            add_option(group, option)
    return group


def add_option(group: Group, option: Option, default: str = "", *names: str) -> None:
    """One option. default: in words, where it is not that of the configuration. names: beside its own."""
    # Of guidance and early exit, an engine directory has its own.
    if not default and option.config is SamplingConfig and option.default not in (None, ()):
        default = str(option.default)
    flags = [flag(name) for name in (option.name, *names, *option.flags)]
    settings: dict[str, Any] = {"dest": option.name, "default": None}
    if option.item is bool:
        settings["action"] = "store_true"
    else:
        settings["metavar"] = option.metavar
        settings["choices"] = option.choices() or None
    text = option.help
    if option.length == 0:
        settings["action"], text = "append", f"{text}; give it again for more"
    text = f"{text} (default: {default})" if default else text
    group.add_argument(*flags, help=text.replace("%", "%%"), **settings)


def add_request_defaults(parser: argparse.ArgumentParser) -> None:
    """Of a server: what holds for requests that say nothing else."""
    group = parser.add_argument_group("defaults of requests that say nothing else")
    for option in OPTIONS:
        default = "the engine directory's" if option.config in (GuidanceConfig, ExitConfig) else ""
        add_option(group, option, default, *([option.tensor] if option.tensor else []))
    add = group.add_argument
    add("--timeout", type=float, metavar="SECONDS", help="after which a question ends in an error (default: never)")


def read_options(arguments: argparse.Namespace) -> Given:
    """Those that were given. Raises RequestError."""
    typed = {name: getattr(arguments, name, None) for name in BY_NAME}
    return {
        name: BY_NAME[name].read_text(value) if isinstance(value, str) else BY_NAME[name].read(value)
        for name, value in typed.items()
        if value is not None
    }
