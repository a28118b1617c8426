"""The table of question options is whole, and every door offers what it says."""

import argparse
import random
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bounds import Ratio, bounds
from engine.cli.__main__ import make_parser
from engine.cli.command_line import flag
from engine.cli.question_options import add_option, read_options
from engine.config import (
    ExitConfig,
    ExitCriterion,
    GuidanceConfig,
    GuidanceSource,
    PictureConfig,
    SamplingConfig,
    ScoreRows,
    VideoConfig,
)
from engine.engine_directory import read_manifest
from engine.errors import RequestError
from engine.options import (
    BY_NAME,
    GROUPS,
    OPTIONS,
    Config,
    Option,
    QuestionConfig,
    all_over,
    over,
    read_given,
    refuse_unread,
)
from engine.serve.triton.inquiry import DTYPES, Reader
from engine.serve.triton.model_config import model_config
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import INPUTS, OUTPUTS, Tensor, option_input

DOCS = Path(__file__).parent.parent / "docs"
CASES = 3000
PRUNING = {"retention_ratio", "prune_layer", "average_retention", "schedule", "no_guidance"}
LIMITS_OF_A_SHARE = ("retention_least", "retention_most")
WHOLE = set(BY_NAME)
COMMANDS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "ask": (("engine", "What?"), WHOLE),
    "chat": (("engine",), WHOLE),
    "serve": (("engine",), WHOLE),
    "export": (("--engine", "engine", "--out", "repository"), WHOLE),
    "evaluate": (
        ("--engine", "engine", "--benchmark", "textvqa"),
        {option.name for option in OPTIONS if option.config in (VideoConfig, GuidanceConfig, ExitConfig)}
        | {"max_new_tokens", "seed", "draft", "speculate"},
    ),
    "calibrate": (
        ("--engine", "engine", "--run", "run.jsonl", "--exit-ratio", "0.5"),
        {option.name for option in OPTIONS if option.config is ExitConfig},
    ),
    "plan": (("--small", "a", "--large", "b"), PRUNING | {"max_new_tokens", "frames"}),
}
"""What each needs besides, and the options that it offers."""


@dataclass(frozen=True)
class Example:
    """A value other than the default, as it is typed, as JSON has it, and as it is."""

    typed: str
    json: Any
    value: Any


def example(option: Option) -> Example:
    if option.name == "background":
        return Example("1,2,3", [1, 2, 3], (1, 2, 3))
    if option.name == "json_schema":
        return Example('{"type": "object"}', '{"type": "object"}', '{"type": "object"}')
    if option.length == 0:
        return Example("a, b", ["a, b"], ("a, b",))
    if issubclass(option.item, StrEnum):
        last = list(option.item)[-1]
        return Example(str(last), str(last), last)
    examples = {bool: Example("true", True, True), int: Example("3", 3, 3), float: Example("0.3", 0.3, 0.3)}
    return examples[option.item]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Names of the table's options that a parser takes."""
    return {action.dest for action in parser._actions} & WHOLE


def command(name: str) -> argparse.ArgumentParser:
    [subparsers] = [action for action in make_parser([name])._actions if isinstance(action.choices, dict)]
    assert isinstance(subparsers.choices, dict)
    parser: argparse.ArgumentParser = subparsers.choices[name]
    return parser


@pytest.mark.parametrize("config", GROUPS)
def test_every_field_is_an_option(config: type[Config]) -> None:
    options = [option.target for option in OPTIONS if option.config is config]
    assert sorted(options) == sorted(field.name for field in fields(config))
    numbers = {option.target for option in OPTIONS if option.config is config and option.item in (int, float)}
    assert numbers == bounds(config).keys(), "every number has a range"


def test_names_are_unique() -> None:
    inputs = [tensor.name for tensor in (*INPUTS, *OUTPUTS)]
    assert len(set(inputs)) == len(inputs)
    assert len(BY_NAME) == len(OPTIONS)
    for option in OPTIONS:
        assert all(BY_NAME[name].config is option.config for name in option.excludes)
        assert bool(option.excludes) == bool(option.why)
        assert option.is_negated <= (option.item is bool and option.default is True)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_value_is_the_same_however_it_is_written(option: Option) -> None:
    wanted = example(option)
    assert option.read(wanted.json) == wanted.value and option.read(wanted.value) == wanted.value
    if option.length != 0:
        assert option.read_text(wanted.typed) == wanted.value
    config = over(option.config(), {option.name: wanted.value})
    assert getattr(config, option.target) == (not wanted.value if option.is_negated else wanted.value)
    assert config != option.config()


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_offer_their_options(name: str) -> None:
    needed, offered = COMMANDS[name]
    parser = command(name)
    assert options_of(parser) == offered
    assert read_options(parser.parse_args(needed)) == {}
    for option in OPTIONS:
        if option.name in offered:
            typed = [] if option.item is bool else [example(option).typed]
            arguments = parser.parse_args([*needed, flag(option.name), *typed])
            assert read_options(arguments) == {option.name: example(option).value}
            assert set(map(flag, option.flags)) <= parser._option_string_actions.keys()


@dataclass(frozen=True)
class Wider(SamplingConfig):
    """With another field."""

    min_p: Ratio = 0.1


def test_another_option_is_a_field_and_a_row() -> None:
    row = Option(Wider, "min_p", "of the likeliest token's probability")
    parser = argparse.ArgumentParser()
    add_option(parser, row)
    assert row.read_text(parser.parse_args(["--min-p", "0.3"]).min_p) == 0.3
    assert option_input(row) == Tensor("min_p", "FP32")
    with pytest.raises(RequestError, match=r"min_p 2\.0 is outside \(0, 1\]; choose another"):
        row.read(2)


def test_defaults_of_a_server_are_read_like_a_request() -> None:
    with pytest.raises(RequestError, match="option 'max_tokens' is unknown"):
        ServeConfig(options={"max_tokens": 7})
    with pytest.raises(RequestError, match="max_new_tokens 0 is outside"):
        ServeConfig(options={"max_new_tokens": 0})
    with pytest.raises(RequestError, match="parameter guidance 'random' is no JSON; write a text in quotes"):
        ServeConfig.from_parameters({"guidance": "random"})


def test_export_knows_options_by_the_names_of_requests() -> None:
    needed, _ = COMMANDS["export"]
    arguments = command("export").parse_args([*needed, "--max-tokens", "7", "--stop-words", "a", "--stop-words", "b"])
    assert read_options(arguments) == {"max_new_tokens": 7, "stop": ("a", "b")}


def tensor(option: Option, value: Any) -> np.ndarray:
    declared = next(tensor for tensor in INPUTS if tensor.name == option.input)
    values = value if isinstance(value, list) else [value]
    return np.array([[part.encode() if isinstance(part, str) else part for part in values]], DTYPES[declared.kind])


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_served_model_offers_every_option(option: Option, engine_directory: Path) -> None:
    manifest, values = read_manifest(engine_directory), {option.name: example(option)}
    if option.name in LIMITS_OF_A_SHARE:
        values["retention_share"] = example(BY_NAME["retention_share"])
    question = {"text_input": np.array([[b"What?"]], object)}
    tensors = {BY_NAME[name].input: tensor(BY_NAME[name], wanted.json) for name, wanted in values.items()}
    given = {name: wanted.value for name, wanted in values.items()}
    asked = Reader(ServeConfig(), manifest).read(question | tensors, "").config
    assert asked == all_over(ServeConfig().question(manifest), given)
    served = ServeConfig.from_parameters(ServeConfig(options=given).parameters())
    assert served.options == given
    assert Reader(served, manifest).read(question, "").config == asked
    assert f'name: "{option.input}"' in model_config([], {})


def test_pages_name_every_option() -> None:
    options, deploy = ((DOCS / name).read_text(encoding="utf-8") for name in ("options.md", "deploy.md"))
    assert [option.name for option in OPTIONS if f"`{flag(option.name)}" not in options] == []
    assert [option.input for option in OPTIONS if f"`{option.input}`" not in deploy] == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prune_layer", 1.0, "prune_layer 1.0 is not a whole number; give one"),
        ("prune_layer", True, "prune_layer True is not a whole number; give one"),
        ("prune_layer", -1, r"prune_layer -1 is outside 0\.\.1023; choose another"),
        ("retention_ratio", "0.3", "retention_ratio '0.3' is not a number; give one"),
        ("retention_ratio", 10**400, r"retention_ratio 1000+\.\.\. is not a number; give one"),
        ("retention_ratio", float("nan"), r"retention_ratio nan is outside \(0, 1\]; choose another"),
        ("temperature", -1, "temperature -1.0 is not a number of at least 0; choose another"),
        ("max_new_tokens", 2**40, r"max_new_tokens 1099511627776 is outside 1\.\.16777216; choose another"),
        ("guidance", "largest", "guidance 'largest' is not one of small, fastv, oracle, random, tome; give one"),
        ("guidance", ["small"], r"guidance \['small'\] is not one of small, "),
        ("no_guidance", 1, "no_guidance 1 is not true or false; give one"),
        ("stop", "###", "stop '###' is not a list; give one"),
        ("stop", ["a", None], "stop None is not a text; give one"),
        ("stop", [""], "stop holds an empty text; leave it out"),
        ("json_schema", {}, "json_schema {} is not a text; give one"),
        ("json_schema", "[]", "json_schema is no object; send a schema"),
        ("json_schema", "{", r"json_schema cannot be read as JSON \(.*\); send a schema, an object"),
        ("json_schema", " " * 70_000, "json_schema has more than 65,536 bytes; send a smaller one"),
        ("background", [1, 2], "background cannot be a tuple of 2; give a tuple of 3, each a whole number"),
        ("temprature", 1, "option 'temprature' is unknown; there are auto_orient, "),
    ],
)
def test_what_is_not_a_value_is_refused_in_a_sentence(name: str, value: object, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        read_given({name: value})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seed", "x", "seed 'x' is not a whole number; give one"),
        ("seed", "-1", "seed -1 is not a number of at least 0; choose another"),
        ("top_p", "", "top_p '' is not a number; give one"),
        ("background", "1,2,x", "background 'x' is not a whole number; give one"),
        ("no_early_exit", "maybe", "no_early_exit 'maybe' is not true or false; give one"),
    ],
)
def test_so_is_what_is_not_its_text(name: str, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}$"):
        BY_NAME[name].read_text(text)


def test_any_value_is_read_or_refused() -> None:
    """Of JSON and as text; what is read is what a configuration takes."""
    chance = random.Random(5)
    texts = ["small", "", "1", "0.5", "-1", "1e999", "nan", "1,2,3", ",", "true", "x" * 99, "\ud800", "٣", "1_0"]
    atoms: list[Any] = [None, True, False, 0, 1, -1, 0.5, 1e308, float("inf"), 10**400, 2**63, *texts, {}, {"a": 1}]
    outcomes: list[tuple[Option, Any]] = []
    refusals: list[tuple[Option, str]] = []
    for _ in range(CASES):
        option = chance.choice(OPTIONS)
        value = chance.choice(atoms) if chance.random() < 0.6 else [chance.choice(atoms) for _ in range(3)]
        is_text = isinstance(value, str) and chance.random() < 0.5
        try:
            outcomes.append((option, option.read_text(value) if is_text else option.read(value)))
        except RequestError as error:
            refusals.append((option, str(error)))
    for option, value in outcomes:
        over(option.config(), {option.name: value})
    assert all(message.startswith(option.name) and "; " in message for option, message in refusals)
    assert CASES // 20 < len(outcomes) < CASES


def test_what_is_given_undoes_what_excludes_it() -> None:
    """The engine directory, the server and a request are layers of this kind."""
    below = GuidanceConfig(enabled=False, average_retention=0.4, score_rows=ScoreRows.PROMPT)
    assert over(below, {"retention_ratio": 0.1}) == GuidanceConfig(retention_ratio=0.1, score_rows=ScoreRows.PROMPT)
    assert over(below, {"guidance": GuidanceSource.TOME}).enabled
    assert not over(below, {"score_layers": 0.5}).enabled, "the consistency reads them, too"
    assert over(GuidanceConfig(), {"no_guidance": True}) == GuidanceConfig(enabled=False)
    assert over(below, {"no_guidance": False, "prune_layer": 1}).enabled
    assert over(ExitConfig(enabled=False), {"exit_threshold": 0.5}) == ExitConfig(exit_threshold=0.5)
    assert over(SamplingConfig(seed=3), {"exit_threshold": 0.5}) == SamplingConfig(seed=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"average_retention": 0.3, "prune_layer": 1, "retention_ratio": 0.1},
            "average_retention chooses prune layer and .*; leave it out, or retention_ratio and prune_layer$",
        ),
        (
            {"no_guidance": True, "guidance": GuidanceSource.RANDOM},
            "no_guidance keeps every visual token; leave it out",
        ),
        ({"no_early_exit": True, "normalise": "mean"}, "no_early_exit asks no criterion; leave it out, or normalise"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        all_over(QuestionConfig(), given)


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ({"seed": 3}, "seed"),
        ({"seed": 3, "temperature": 1.0}, None),
        ({"seed": 3, "guidance": GuidanceSource.RANDOM}, None),
        ({"top_p": 0.5}, "top_p"),
        ({"top_k": 5, "temperature": 0.5}, None),
        ({"score_rows": ScoreRows.PROMPT, "guidance": GuidanceSource.FASTV}, "score_rows"),
        ({"score_rows": ScoreRows.PROMPT, "no_guidance": True}, None),
        ({"score_rows": ScoreRows.PROMPT, "no_guidance": True, "no_early_exit": True}, "score_rows"),
        ({"guide_max_new_tokens": 5, "no_early_exit": True, "guidance": GuidanceSource.TOME}, "guide_max_new_tokens"),
        ({"guide_max_new_tokens": 5, "no_early_exit": True}, None),
        ({"consistency_retention": 0.1, "exit_criterion": ExitCriterion.Q1}, "consistency_retention"),
        ({"consistency_retention": 0.1, "exit_criterion": ExitCriterion.CONSISTENCY}, None),
    ],
)
def test_what_nothing_reads_is_refused(given: dict[str, Any], unread: str | None) -> None:
    config = all_over(QuestionConfig(), given)
    if unread is None:
        refuse_unread(given, config)
        return
    with pytest.raises(RequestError, match=f"^{unread} .*; leave it out$"):
        refuse_unread(given, config)


def test_defaults_are_those_of_the_configurations() -> None:
    assert all_over(QuestionConfig(), {}) == QuestionConfig()
    assert vars(QuestionConfig()) == {
        "picture": PictureConfig(),
        "video": VideoConfig(),
        "guidance": GuidanceConfig(),
        "exit": ExitConfig(),
        "sampling": SamplingConfig(),
    }
