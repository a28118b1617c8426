"""How a pair is served; what the repository's parameters hold."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ServingConfig
from engine.errors import RequestError


@dataclass(frozen=True)
class ServeConfig:
    """None stands for what the engine directory says."""

    gpus: tuple[int, ...] = ()
    """Where the pair runs: a process on each GPU, or of a large model of N ranks, on each N of them; none is the CPU,
    and of plans the first GPU."""
    threads: int | None = None
    """Of each process; None takes the cores that it may use."""
    max_running: int = ServingConfig.max_running
    """This and the next four: of each process."""
    max_waiting: int = ServingConfig.max_waiting
    kv_memory: int | None = ServingConfig.kv_memory
    prefill_chunk: int = ServingConfig.prefill_chunk
    feature_cache: int = ServingConfig.feature_cache
    max_tokens: int = SamplingConfig.max_new_tokens
    retention_ratio: float | None = None
    prune_layer: int | None = None
    exit_threshold: float | None = None
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
        for name in ("threads", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} {value} is below 1")
        if self.timeout is not None:
            check_timeout(self.timeout)
        if any(gpu < 0 for gpu in self.gpus):
            raise RequestError(f"gpus {self.gpus} names a negative id; GPUs count from 0")
        if len(set(self.gpus)) < len(self.gpus):
            raise RequestError(f"gpus {self.gpus} names a GPU twice; one process answers many questions at once")

    def serving(self) -> ServingConfig:
        """Raises RequestError for what it refuses."""
        return ServingConfig(**{field.name: getattr(self, field.name) for field in fields(ServingConfig)})

    def guidance(self, default: GuidanceConfig) -> GuidanceConfig:
        """Of requests that name none. Raises RequestError."""
        return with_pruning(default, self.retention_ratio, self.prune_layer)

    def exit(self, default: ExitConfig) -> ExitConfig:
        return with_threshold(default, self.exit_threshold)

    def parameters(self) -> dict[str, str]:
        """As the text parameters of the served model."""
        return {name: str(value) for name in RUNTIME if (value := getattr(self, name)) is not None}

    @classmethod
    def from_parameters(cls, parameters: dict[str, str]) -> "ServeConfig":
        """The inverse; parameters that are not ours are Triton's."""
        values: dict[str, Any] = {}
        for name in RUNTIME & parameters.keys():
            text, kind = parameters[name], KINDS[name]
            values[name] = text == "True" if kind == "bool" else (float(text) if "float" in kind else int(text))
        return cls(**values)


KINDS = {field.name: str(getattr(field.type, "__name__", field.type)) for field in fields(ServeConfig)}
SERVER = {"gpus", "environment"}
"""What is in the server's own configuration."""
RUNTIME = KINDS.keys() - SERVER
"""What the adapter reads."""


def with_pruning(default: GuidanceConfig, retention_ratio: float | None, prune_layer: int | None) -> GuidanceConfig:
    """What was asked for, over a default; naming either turns guidance on. Raises RequestError."""
    wanted = {"retention_ratio": retention_ratio, "prune_layer": prune_layer}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    return replace(default, enabled=True, average_retention=None, **given) if given else default


def with_threshold(default: ExitConfig, exit_threshold: float | None) -> ExitConfig:
    """The default with another threshold, which turns early exit on."""
    return default if exit_threshold is None else replace(default, enabled=True, exit_threshold=exit_threshold)


def check_timeout(timeout: float) -> None:
    """Raises RequestError."""
    if not 0 < timeout < math.inf:
        raise RequestError(f"timeout {timeout} is not a number of seconds above 0; leave it out for none")
