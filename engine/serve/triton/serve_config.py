"""How a pair is served; what the repository's parameters hold."""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.bounds import shown
from engine.config import ServingConfig
from engine.errors import RequestError, Setting
from engine.manifest import Manifest
from engine.options import OPTIONS, Given, Option, QuestionConfig, all_over, read_given


@dataclass(frozen=True)
class ServeConfig:
    """None stands for what the engine directory says."""

    gpus: tuple[int, ...] = ()
    """Where the pair runs: a process on each GPU, or on each N of them if that is what a process uses (a GPU for each
    rank of the large model, one more for a small model apart); none is the CPU, and of plans the first GPUs."""
    threads: int | None = None
    """Of each process; None takes the cores that it may use."""
    max_running: int = ServingConfig.max_running
    """This and the next six: of each process."""
    max_waiting: int = ServingConfig.max_waiting
    kv_memory: int | None = ServingConfig.kv_memory
    prefill_chunk: int = ServingConfig.prefill_chunk
    feature_cache: int = ServingConfig.feature_cache
    small_apart: bool = ServingConfig.small_apart
    prefix_cache: int = ServingConfig.prefix_cache
    options: Given = field(default_factory=dict)
    """Of questions that give no others."""
    timeout: float | None = None
    """Seconds after which a question ends in an error, unless it names others; None is never."""
    allow_image_urls: bool = False
    """Fetch http(s) pictures, from public addresses only."""
    warm_up: bool = True
    """Answer a question before the model counts as ready."""
    environment: Path | None = None
    """Python environment of the model: a directory or archive for EXECUTION_ENV_PATH; None is the server's own."""

    def __post_init__(self) -> None:
        self.serving()
        read_given(self.options)
        if self.threads is not None and self.threads < 1:
            raise RequestError(Setting("threads"), f" {self.threads} is below 1; give at least one")
        if self.timeout is not None:
            check_timeout(self.timeout)
        if any(gpu < 0 for gpu in self.gpus):
            raise RequestError(Setting("gpus"), f" {self.gpus} names a negative id; GPUs count from 0")
        if len(set(self.gpus)) < len(self.gpus):
            raise RequestError(
                Setting("gpus"), f" {self.gpus} names a GPU twice; one process answers many questions at once"
            )

    def serving(self) -> ServingConfig:
        """Raises RequestError for what it refuses."""
        return ServingConfig(**{field.name: getattr(self, field.name) for field in fields(ServingConfig)})

    def question(self, manifest: Manifest) -> QuestionConfig:
        """How a question is answered that says nothing else. Raises RequestError."""
        return all_over(QuestionConfig(guidance=manifest.guidance, exit=manifest.exit), self.options)

    def parameters(self) -> dict[str, str]:
        """As the text parameters of the served model; options as JSON, by the names that requests give them."""
        given = [option for option in OPTIONS if option.name in self.options]
        options = {option.input: json.dumps(self.options[option.name]) for option in given}
        return {name: str(value) for name in RUNTIME if (value := getattr(self, name)) is not None} | options

    @classmethod
    def from_parameters(cls, parameters: dict[str, str]) -> "ServeConfig":
        """The inverse; parameters that are not ours are Triton's. Raises RequestError."""
        values: dict[str, Any] = {}
        for name in RUNTIME & parameters.keys():
            text, kind = parameters[name], KINDS[name]
            values[name] = text == "True" if kind == "bool" else (float(text) if "float" in kind else int(text))
        options = {
            option.name: _read(option, parameters[option.input]) for option in OPTIONS if option.input in parameters
        }
        return cls(**values, options=options)


KINDS = {field.name: str(getattr(field.type, "__name__", field.type)) for field in fields(ServeConfig)}
RUNTIME = KINDS.keys() - {"gpus", "environment", "options"}
"""What the adapter reads as it is; the first two are in the server's own configuration."""


def _read(option: Option, text: str) -> Any:
    """Raises RequestError."""
    try:
        return option.read(json.loads(text))
    except json.JSONDecodeError:
        raise RequestError(f"parameter {option.input} {shown(text)} is no JSON; write a text in quotes") from None


def check_timeout(timeout: float) -> None:
    """Raises RequestError."""
    if not 0 < timeout < math.inf:
        raise RequestError(Setting("timeout"), f" {timeout} is not a number of seconds above 0; leave it out for none")
